"""The routes: OpenAI's, probes, and sessions. Errors have OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from gateway import errors
from gateway.core import Gateway
from gateway.errors import RequestError
from gateway.events import Mark
from gateway.http import answers, headers, openapi, request_span, schema
from gateway.http.access_log import AccessLog, Slashless
from gateway.http.asked import Bodies, chat, completion
from gateway.http.responses.routes import add_responses
from gateway.http.responses.schema import ResponsesRequest
from gateway.http.strict import Strict
from gateway.http.tokens import add_tokens
from paceline import __version__
from paceline.api_keys import Scope
from paceline.service import telemetry

log = telemetry.logger(__name__)


def build_app(gateway: Gateway) -> FastAPI:
    """The HTTP application."""
    app = FastAPI(
        title="Paceline",
        version=__version__,
        description="OpenAI-compatible API of a Paceline gateway.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Spans of its own would hold what clients say in URLs, and errors' words.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    openapi.describe(
        app,
        schema.ChatRequest,
        schema.CompletionRequest,
        ResponsesRequest,
        schema.TokenizeRequest,
        schema.DetokenizeRequest,
    )
    app.add_middleware(Slashless)
    if gateway.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(AccessLog, draining=lambda: gateway.readiness.draining)
    _add_probes(app, gateway)
    _add_models(app, gateway)
    ignoring = gateway.ignores_unknown_fields
    bodies = Bodies(gateway.max_body_bytes, gateway.trials, ignoring=ignoring)
    _add_generation(app, gateway, bodies)
    add_responses(app, gateway, bodies)
    add_tokens(app, gateway, bodies)
    _add_sessions(app, gateway)
    _add_error_handlers(app)
    return app


def _add_probes(app: FastAPI, gateway: Gateway) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether a request sent now would be served."""
        problem = await gateway.readiness.problem()
        return JSONResponse({"status": problem or "ok"}, 503 if problem else 200)


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    described = {
        "id": gateway.model_name,
        "object": "model",
        "created": gateway.started,
        "owned_by": "paceline",
    }

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The model served."""
        headers.caller(gateway.keys, request)
        return {"object": "list", "data": [described]}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One model."""
        headers.caller(gateway.keys, request)
        if name != gateway.model_name:
            raise RequestError(errors.UNKNOWN_MODEL, f"the model {name!r} does not exist", "model")
        return described


def _add_generation(app: FastAPI, gateway: Gateway, bodies: Bodies) -> None:
    @app.post("/v1/chat/completions", openapi_extra=openapi.body_of(schema.ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """A chat's next message, whole or streamed."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        stages = request_span.begin(request)
        asked = await bodies.read(request, caller, schema.ChatRequest)
        stages.enter("gateway.tokenise")
        return _telling(asked, await answers.respond(gateway, request, caller, chat(gateway, asked), stages))

    @app.post("/v1/completions", openapi_extra=openapi.body_of(schema.CompletionRequest))
    async def completions(request: Request) -> Response:
        """A text's continuation, whole or streamed."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        stages = request_span.begin(request)
        asked = await bodies.read(request, caller, schema.CompletionRequest)
        stages.enter("gateway.tokenise")
        return _telling(
            asked, await answers.respond(gateway, request, caller, completion(gateway, asked), stages)
        )


def _telling(asked: Strict, response: Response) -> Response:
    """The response, with the names of the request's fields that were ignored."""
    response.headers.update(headers.of_ignored(asked.ignored))
    return response


def _add_sessions(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/sessions/{session_id}/events")
    async def session_events(session_id: str, request: Request) -> Response:
        """The rest of a stream that broke, behind the event that `Last-Event-ID` names; all of it without."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        stages = request_span.begin(request)
        mark = headers.mark(request) or Mark(session_id)
        if mark.session_id != session_id:
            raise RequestError(
                errors.invalid("invalid_value"), "Last-Event-ID is of another session", "Last-Event-ID"
            )
        return await answers.resume(gateway, request, caller, mark, stages)

    @app.delete("/v1/sessions/{session_id}")
    async def cancel_session(session_id: str, request: Request) -> dict[str, Any]:
        """End a session, wherever it runs."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        reason = await gateway.sessions.cancel(session_id, caller)
        return {"id": session_id, "object": "session", "finish_reason": str(reason)}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), error.kind.status, headers=headers.of_error(error))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        kind = errors.WRONG_METHOD if error.status_code == 405 else errors.NO_ROUTE
        message = f"{request.method} {request.url.path} is not served here"
        return JSONResponse(RequestError(kind, message).body(), error.status_code, headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error in a request", path=request.url.path, exc_info=error)
        told = RequestError(errors.INTERNAL, "internal error; the gateway's log has the details")
        return JSONResponse(told.body(), 500)
