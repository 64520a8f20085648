"""Sixteen clients in closed loop: of both faces, in every manner, some of them rude."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from paceline.client import Chunk, GatewayClient, GatewayError, Generation
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.rpc import channel
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.pods import MODEL, Pods

_TIMEOUT_SECONDS = 120.0
_WORDS = ("the quick brown fox", "hello world", "jumps over", "the lazy dog")


@dataclass(frozen=True, slots=True)
class Wish:
    """What decides a text, and is asked in many manners."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int


def _wishes() -> list[Wish]:
    """Half of them greedy; prompts that share beginnings."""
    return [
        Wish(f"{_WORDS[number % 4]} " * (1 + number % 7), 16 << number % 4, 0.8 * (number % 2), number)
        for number in range(48)
    ]


class WrongError(AssertionError):
    """A client was served otherwise than it should be."""


class Clients:
    """All clients. `served` counts what they did; `wrong` says what was not as it should be."""

    def __init__(self, pods: Pods, *, concurrency: int, seed: int) -> None:
        self.served: Counter[str] = Counter()
        self.tokens = 0
        self.wrong: list[str] = []
        self._pods = pods
        self._random = random.Random(seed)
        self._wishes = _wishes()
        self._texts: dict[Wish, str] = {}
        limits = httpx.Limits(max_connections=2 * concurrency)
        self._http = httpx.AsyncClient(base_url=pods.http, timeout=_TIMEOUT_SECONDS, limits=limits)
        self._grpc = GatewayClient(pods.grpc)
        self._manners: dict[str, tuple[int, Callable[[Wish], Awaitable[None]]]] = {
            "HTTP, streamed": (20, self._streamed),
            "HTTP, whole": (20, self._whole),
            "gRPC": (20, self._generated),
            "HTTP, hung up": (8, self._streamed_in_part),
            "gRPC, cancelled": (8, self._generated_in_part),
            "HTTP, nonsense": (6, self._nonsense_in_http),
            "gRPC, nonsense": (6, self._nonsense_in_grpc),
            "drafter, nonsense": (6, self._nonsense_of_a_drafter),
        }
        self._running = [asyncio.create_task(self._client()) for _ in range(concurrency)]

    async def close(self) -> None:
        """Let every client come to the end of what it is at, and close."""
        self._wishes = []
        await asyncio.gather(*self._running)
        await self._http.aclose()
        await self._grpc.__aexit__(None, None, None)

    async def _client(self) -> None:
        names = list(self._manners)
        weights = [weight for weight, _ in self._manners.values()]
        while self._wishes:
            (name,) = self._random.choices(names, weights)
            try:
                await self._manners[name][1](self._random.choice(self._wishes))
                self.served[name] += 1
            except (
                WrongError,
                GatewayError,
                httpx.HTTPError,
                grpc.aio.AioRpcError,
                KeyError,
                ValueError,
            ) as error:
                self.wrong.append(f"{name}: {type(error).__name__}: {error}")

    def _body(self, wish: Wish, **more: Any) -> dict[str, Any]:
        asked = {
            "model": MODEL,
            "prompt": wish.prompt,
            "max_tokens": wish.max_tokens,
            "temperature": wish.temperature,
            "seed": wish.seed,
        }
        return {**asked, "speculation": {"enabled": self._random.random() < 0.7}, **more}

    def _generation(self, wish: Wish) -> Generation:
        return Generation(
            text=wish.prompt,
            max_tokens=wish.max_tokens,
            temperature=wish.temperature,
            seed=wish.seed,
            speculation=self._random.random() < 0.7,
        )

    def _read(self, wish: Wish, text: str, tokens: int) -> None:
        """The text is the same however it was asked for."""
        self.tokens += tokens
        if self._texts.setdefault(wish, text) != text:
            raise WrongError(f"{wish}: {text!r} is not {self._texts[wish]!r}")

    async def _whole(self, wish: Wish) -> None:
        answer = (await self._http.post("/v1/completions", json=self._body(wish))).raise_for_status().json()
        self._read(wish, answer["choices"][0]["text"], answer["usage"]["completion_tokens"])

    async def _streamed(self, wish: Wish) -> None:
        text, tokens, ended = "", 0, False
        body = self._body(wish, stream=True, stream_options={"include_usage": True})
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ") if line.startswith("data: ") else ""
                ended = ended or data == "[DONE]"
                if data and data != "[DONE]":
                    piece = json.loads(data)
                    text += "".join(choice["text"] for choice in piece["choices"])
                    tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
        if not ended:
            raise WrongError("a stream without an end")
        self._read(wish, text, tokens)

    async def _generated(self, wish: Wish) -> None:
        text, tokens = "", 0
        async for event in self._grpc.generate(self._generation(wish), timeout_s=_TIMEOUT_SECONDS):
            if isinstance(event, Chunk):
                text += event.text
                tokens += len(event.token_ids)
        self._read(wish, text, tokens)

    async def _streamed_in_part(self, wish: Wish) -> None:
        lines = self._random.randrange(6)
        body = self._body(wish, stream=True)
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_lines():
                lines -= 1
                if lines < 0:
                    return

    async def _generated_in_part(self, wish: Wish) -> None:
        events = self._random.randrange(6)
        generating = self._grpc.generate(self._generation(wish), timeout_s=_TIMEOUT_SECONDS)
        async for _ in generating:
            events -= 1
            if events < 0:
                break
        await generating.aclose()

    async def _nonsense_in_http(self, wish: Wish) -> None:
        bodies = (b"{", b"[1]", json.dumps(self._body(wish, top_p=7)).encode(), self._random.randbytes(99))
        answer = await self._http.post("/v1/completions", content=self._random.choice(bodies))
        if answer.status_code != 400:
            raise WrongError(f"nonsense was answered with {answer.status_code}")

    async def _nonsense_in_grpc(self, wish: Wish) -> None:
        wrong = self._random.choice(
            [Generation(text=""), Generation(text=wish.prompt, top_p=7), Generation()]
        )
        try:
            async for _ in self._grpc.generate(wrong, timeout_s=_TIMEOUT_SECONDS):
                pass
        except GatewayError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                return
            raise
        raise WrongError("nonsense was served")

    async def _nonsense_of_a_drafter(self, wish: Wish) -> None:
        # Each time on another connection: a drafter of that kind is soon put aside.
        hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="nonsense")
        async with channel(self._pods.verifier) as made:
            call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=_TIMEOUT_SECONDS)
            await call.write(verifier_pb2.DraftRequest(hello=hello))
            await call.read()
            joins = [verifier_pb2.Join(known_length=wish.seed)] * self._random.randrange(1, 200)
            await call.write(verifier_pb2.DraftRequest(joins=joins))
            if self._random.random() < 0.5:
                await call.read()
            call.cancel()
