"""The HTTP API's own description, served as /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"
# FastAPI's description of refusals is wrong here: bodies are parsed and refused as OpenAI does.
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, for people."},
                "type": {"type": "string"},
                "param": {**_TEXT_OR_NULL, "description": "The field at fault."},
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_USAGE = {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
_FINISH = {"type": ["string", "null"], "description": "Why it ended: stop, length, tool_calls, cancelled."}
_STOP = {
    "type": ["string", "integer", "null"],
    "description": "The stop string, or the id of stop_token_ids, that ended the text.",
}
_IDS = {"type": "array", "items": _COUNT, "description": "With return_token_ids."}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _answer(name: str, **choice: Any) -> dict[str, Any]:
    """The schema of a completion, or of a chunk of one."""
    one = _object(index=_COUNT, finish_reason=_FINISH, **choice)
    one["properties"] |= {"stop_reason": _STOP, "token_ids": _IDS, "prompt_token_ids": _IDS}
    made = _object(
        id=_TEXT,
        object={"const": name},
        created=_COUNT,
        model=_TEXT,
        choices={"type": "array", "items": one},
    )
    extension = {"type": "object", "description": "What the session cost and what speculation gave it."}
    made["properties"] |= {
        "usage": _object(**_USAGE),
        "paceline": extension,
        "metrics": _METRICS,
        "prompt_token_ids": _IDS,
        "system_fingerprint": _TEXT,
    }
    return made


_METRICS = _object(
    speculative_decoding=_object(
        mean_acceptance_length={"type": "number"},
        draft_acceptance_rate={"type": "number"},
        acceptance_histogram={"type": "array", "items": _COUNT},
        num_spec_steps=_COUNT,
        num_accepted_draft_tokens=_COUNT,
        num_draft_tokens=_COUNT,
        num_spec_tokens=_COUNT,
    )
)
_CALLED = {"type": "object", "properties": {"name": _TEXT, "arguments": {**_TEXT, "description": "JSON."}}}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {"index": _COUNT, "id": _TEXT, "type": {"const": "function"}, "function": _CALLED},
}
_CALLS = {"reasoning_content": _TEXT, "tool_calls": {"type": "array", "items": _CALL}}
_MESSAGE = _object(role=_TEXT, content=_TEXT_OR_NULL)
_MESSAGE["properties"] |= _CALLS
_DELTA = {"type": "object", "properties": {"role": _TEXT, "content": _TEXT, **_CALLS}}
_ITEM = {
    "type": "object",
    "required": ["type", "id"],
    "properties": {"type": {"enum": ["message", "function_call", "reasoning"]}, "id": _TEXT, "status": _TEXT},
}
_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
_ANSWERS = {
    "Error": _ERROR,
    "Status": _object(status={**_TEXT, "description": "ok, or what is wrong."}),
    "Model": _MODEL,
    "ModelList": _object(
        object={"const": "list"}, data={"type": "array", "items": {"$ref": _REFERENCE.format(model="Model")}}
    ),
    "ChatCompletion": _answer("chat.completion", message=_MESSAGE),
    "ChatCompletionChunk": _answer("chat.completion.chunk", delta=_DELTA),
    "Completion": _answer("text_completion", text=_TEXT),
    "Tokens": _object(
        count=_COUNT,
        max_model_len=_COUNT,
        tokens={"type": "array", "items": _COUNT},
        token_strs={"type": ["array", "null"], "items": _TEXT},
    ),
    "Text": _object(prompt=_TEXT),
    "Response": _object(
        id=_TEXT,
        object={"const": "response"},
        created_at=_COUNT,
        status={"enum": ["in_progress", "completed", "incomplete", "failed", "cancelled"]},
        model=_TEXT,
        output={"type": "array", "items": _ITEM},
    ),
    "ResponseEvent": _object(type=_TEXT, sequence_number=_COUNT),
    "ResponseDeleted": _object(id=_TEXT, object={"const": "response"}, deleted={"const": True}),
    "SessionEnd": _object(id=_TEXT, object={"const": "session"}, finish_reason=_TEXT),
}
# Each route's response body, and the data of its stream's events; with its method, where they differ by it.
_OF_ROUTE: dict[str, tuple[str | None, str | None]] = {
    "/health": ("Status", None),
    "/healthz": ("Status", None),
    "/readyz": ("Status", None),
    "/v1/models": ("ModelList", None),
    "/v1/models/{name}": ("Model", None),
    "/v1/chat/completions": ("ChatCompletion", "ChatCompletionChunk"),
    "/v1/completions": ("Completion", "Completion"),
    "/tokenize": ("Tokens", None),
    "/detokenize": ("Text", None),
    "/v1/responses": ("Response", "ResponseEvent"),
    "/v1/responses/{response_id}": ("Response", None),
    "delete /v1/responses/{response_id}": ("ResponseDeleted", None),
    "/v1/sessions/{session_id}/events": (None, "ChatCompletionChunk"),
    "/v1/sessions/{session_id}": ("SessionEnd", None),
}
_HEADERS = {
    "x-request-id": {"schema": _TEXT, "description": "The request's own, or a new one."},
    "openai-processing-ms": {"schema": _TEXT, "description": "Milliseconds until the response began."},
}
_OF_SESSIONS = {
    "x-paceline-session-id": {"schema": _TEXT, "description": "The choices' sessions, in their order."},
    "x-paceline-seed": {"schema": _TEXT, "description": "The first session's seed, once it is known."},
    "x-paceline-ignored-fields": {"schema": _TEXT, "description": "Fields that were ignored."},
    "traceresponse": {"schema": _TEXT, "description": "The trace, where there is one."},
}
_REFUSALS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No API key, or one that is not known.",
    "403": "The API key lacks the scope.",
    "404": "There is no such model, session or route.",
    "429": "Over a limit; `Retry-After` says when to try again.",
    "503": "Cannot be served now; `Retry-After` says when to try again.",
}
_BEARER = "bearer"
_PROBES = frozenset({"/health", "/healthz", "/readyz"})


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a `model` from its request's body."""
    return {"requestBody": {"required": True, "content": _json(model.__name__)}}


def describe(app: FastAPI, *bodies: type[BaseModel]) -> None:
    """Have `app` serve a document that defines `bodies` and the errors."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, bodies: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    schemas |= {**definitions["$defs"], **_ANSWERS}
    made["components"]["securitySchemes"] = {
        _BEARER: {"type": "http", "scheme": "bearer", "description": "An API key, where keys are demanded."}
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(path, method)
            if path not in _PROBES:
                operation["security"] = [{_BEARER: []}, {}]
    return made


def _responses(path: str, method: str) -> dict[str, Any]:
    whole, event = _OF_ROUTE.get(f"{method} {path}") or _OF_ROUTE[path]
    content = {} if whole is None else _json(whole)
    if event is not None:
        end = "" if event == "ResponseEvent" else ", then `[DONE]`"
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f"With `stream: true`: events whose data are each a {event}{end}.",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": _REFERENCE.format(model=event)},
            }
        }
    told: dict[str, Any] = {"200": {"description": "Served", "content": content, "headers": _HEADERS}}
    if event is not None:
        told["200"]["headers"] = _HEADERS | _OF_SESSIONS
    if path not in _PROBES:
        told |= {status: {"description": why, "content": _json("Error")} for status, why in _REFUSALS.items()}
    elif path != "/healthz":
        told["503"] = {"description": "A request sent now would not be served", "content": _json("Status")}
    told["default"] = {"description": "Refused", "content": _json("Error")}
    return told


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}
