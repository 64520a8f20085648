"""The routes of responses."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from gateway.core import Gateway
from gateway.http import headers, openapi, request_span
from gateway.http.asked import Bodies
from gateway.http.responses import answers
from gateway.http.responses.schema import ResponsesRequest
from paceline.api_keys import Scope


def add_responses(app: FastAPI, gateway: Gateway, bodies: Bodies) -> None:
    """Add the routes."""

    @app.post("/v1/responses", openapi_extra=openapi.body_of(ResponsesRequest))
    async def create_response(request: Request) -> Response:
        """A response to a chat, whole or streamed."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        stages = request_span.begin(request)
        asked = await bodies.read(request, caller, ResponsesRequest)
        stages.enter("gateway.tokenise")
        made = await answers.respond(gateway, request, caller, asked, stages)
        made.headers.update(headers.of_ignored(asked.ignored))
        return made

    @app.get("/v1/responses/{response_id}")
    async def kept_response(response_id: str, request: Request) -> dict[str, Any]:
        """A response that is kept."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        return await answers.kept(gateway, response_id, caller)

    @app.delete("/v1/responses/{response_id}")
    async def forget_response(response_id: str, request: Request) -> dict[str, Any]:
        """Forget a response that is kept."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        return await answers.forget(gateway, response_id, caller)
