"""The ways of decoding that are compared: each answers one prompt, measured where the request is made."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol, Self

from paceline import tether
from paceline.client import ChatMessage, Chunk, Finished, GatewayClient, Generation
from paceline.model_store import LocalModel
from paceline.session import Receipt

_TIMEOUT_S = 600.0
_LINE_LIMIT = 1 << 24


class ArmFailed(Exception):
    """An arm could not answer; the message is for people."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times run from the request, tokenisation and prefill included, to a token's arrival."""

    text: str
    token_ids: tuple[int, ...]
    first_s: float
    seconds: float
    # Tokens that arrived with the first one: no time was seen between them.
    first_tokens: int = 1
    receipt: Receipt | None = None


class Arm(Protocol):
    """One way of decoding."""

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt greedily. Raises `ArmFailed`."""


class PacelineArm:
    """The whole system through the gateway's gRPC API, with speculation or without."""

    def __init__(
        self, client: GatewayClient, *, speculation: bool, chat: bool, temperature: float = 0.0
    ) -> None:
        self._client = client
        self._temperature = temperature
        self._speculation = speculation
        self._chat = chat

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt, with seed 0. Raises `ArmFailed` and `GatewayError`."""
        generation = Generation(
            text=None if self._chat else prompt,
            chat=(ChatMessage("user", prompt),) if self._chat else (),
            max_tokens=max_tokens,
            temperature=self._temperature,
            seed=0,
            speculation=self._speculation,
        )
        chunks: list[Chunk] = []
        finished: Finished | None = None
        begin = first = last = time.perf_counter()
        async for event in self._client.generate(generation, timeout_s=_TIMEOUT_S):
            if isinstance(event, Chunk):
                last = time.perf_counter()
                first = last if not chunks else first
                chunks.append(event)
            elif isinstance(event, Finished):
                finished = event
        if finished is None or not chunks:
            raise ArmFailed("the gateway ended a stream before its text was finished")
        return Sample(
            "".join(chunk.text for chunk in chunks),
            tuple(token for chunk in chunks for token in chunk.token_ids),
            first - begin,
            last - begin,
            len(chunks[0].token_ids),
            finished.receipt,
        )


class TransformersArm:
    """`transformers.generate` in a process of its own (`bench.reference`), asleep between its prompts."""

    def __init__(self, process: asyncio.subprocess.Process, about: Mapping[str, object]) -> None:
        self.about = about
        self._process = process

    @classmethod
    async def start(cls, model: LocalModel, *, dtype: str, threads: int, log: IO[bytes]) -> Self:
        """Start it and wait until the model is loaded. Call from the main thread. Raises `ArmFailed`."""
        command = [sys.executable, "-m", "bench.reference", "--model", str(model.folder), "--dtype", dtype]
        command += ["--threads", str(threads)] + (["--chat"] if model.can_chat else [])
        process = await asyncio.create_subprocess_exec(
            *tether.command(tuple(command)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
        arm = cls(process, {})
        try:
            arm.about = await arm._line()
        except BaseException:
            await arm.stop()
            raise
        return arm

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt greedily. Raises `ArmFailed`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode() + b"\n")
        with suppress(ConnectionError):  # it has ended: reading says so
            await self._process.stdin.drain()
        made = await self._line()
        return Sample(made["text"], tuple(made["token_ids"]), made["first_s"], made["seconds"])

    async def stop(self) -> None:
        """End the process; returns when it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ArmFailed(f"the transformers process ended with status {await self._process.wait()}")
        made: dict[str, Any] = json.loads(line)
        return made
