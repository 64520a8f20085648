"""POST /tokenize and /detokenize, as vLLM serves them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gateway.caller import Caller
from gateway.core import Gateway
from gateway.errors import OVERLOADED, RequestError, invalid
from gateway.http import headers, openapi, schema
from gateway.http.asked import Bodies, chat_of, rendering_of
from gateway.request import served_model
from paceline.api_keys import Scope

# Most characters that one id is taken for, where work is bounded by the text's length.
_CHARACTERS_PER_TOKEN = 4
# Fewer ids are turned into text at once.
_SHORT_IDS = 500


def add_tokens(app: FastAPI, gateway: Gateway, bodies: Bodies) -> None:
    """Add both routes."""

    @app.post("/tokenize", openapi_extra=openapi.body_of(schema.TokenizeRequest))
    async def tokenize(request: Request) -> JSONResponse:
        """A text's or a chat's ids."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        asked = await bodies.read(request, caller, schema.TokenizeRequest)
        told = await _tokenized(gateway, asked, caller)
        return JSONResponse(told, headers=headers.of_ignored(asked.ignored))

    @app.post("/detokenize", openapi_extra=openapi.body_of(schema.DetokenizeRequest))
    async def detokenize(request: Request) -> JSONResponse:
        """The text of ids, special tokens included."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        asked = await bodies.read(request, caller, schema.DetokenizeRequest)
        told = await _detokenized(gateway, asked, caller)
        return JSONResponse(told, headers=headers.of_ignored(asked.ignored))


async def _tokenized(gateway: Gateway, asked: schema.TokenizeRequest, caller: Caller) -> dict[str, Any]:
    served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise RequestError(
            invalid("missing_required_parameter"), "one of prompt and messages must be given", "prompt"
        )
    if asked.messages is not None:
        special = bool(asked.add_special_tokens)
        chat, rendering = chat_of(asked.messages), rendering_of(asked)
        prompt, field = gateway.prompts.from_chat(chat, rendering, special=special), "messages"
    else:
        special = asked.add_special_tokens is not False
        prompt, field = gateway.prompts.from_text(asked.prompt or "", special=special), "prompt"
    try:
        ids = await prompt.ids_of_any_length(caller.id, _until(gateway))
    except RequestError as error:
        error.param = error.param or field
        raise
    return {
        "count": len(ids),
        "max_model_len": served.max_context,
        "tokens": ids,
        "token_strs": gateway.prompts.pieces(ids) if asked.return_token_strs else None,
    }


async def _detokenized(gateway: Gateway, asked: schema.DetokenizeRequest, caller: Caller) -> dict[str, Any]:
    served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, asked.model)
    ids = asked.tokens
    if ids and max(ids) >= served.vocab_size:
        raise RequestError(
            invalid("invalid_value"),
            f"token {max(ids)} is not in the vocabulary of {served.vocab_size}",
            "tokens",
        )
    prompts = gateway.prompts
    if len(ids) <= _SHORT_IDS:
        return {"prompt": prompts.text_of(ids, special=True)}
    try:
        text = await prompts.tokenizing.run(
            caller.id,
            _CHARACTERS_PER_TOKEN * len(ids),
            lambda: prompts.text_of(ids, special=True),
            until=_until(gateway),
        )
    except TimeoutError:
        raise RequestError(OVERLOADED, "too many long texts wait") from None
    return {"prompt": text}


def _until(gateway: Gateway) -> float:
    return asyncio.get_running_loop().time() + gateway.sessions.admission.queue_seconds
