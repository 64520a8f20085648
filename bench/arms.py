"""Arms, the ways of decoding that are compared: each answers one prompt, timed at the client."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from bench.system import BenchError, Plan, Progress
from paceline.client import Chunk, Finished, GatewayClient, Generation
from paceline.service import tether
from paceline.session import Receipt

TRANSFORMERS, PLAIN, SPECULATIVE = ARMS = ("transformers", "plain", "speculative")

TIMEOUT_S = 600.0
_LINE_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times run from the request, tokenisation and prefill included, to a token's arrival."""

    text: str
    token_ids: tuple[int, ...]
    first_s: float
    seconds: float
    # Tokens that arrived together with the first one, so that no time is known between them.
    first_tokens: int = 1
    receipt: Receipt | None = None
    # The server's own count of tokens, where it sends no ids.
    counted: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids) if self.counted is None else self.counted


class Arm(Protocol):
    """One way of decoding."""

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt greedily. Raises `BenchError`."""


class PacelineArm:
    """The whole system through the gateway's gRPC API, with speculation or without."""

    def __init__(
        self, client: GatewayClient, plan: Plan, *, speculation: bool, temperature: float = 0.0
    ) -> None:
        self._client = client
        self._plan = plan
        self._speculation = speculation
        self._temperature = temperature

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt, with seed 0. Raises `BenchError` and `GatewayError`."""
        generation = self._plan.generation(
            prompt, speculation=self._speculation, temperature=self._temperature, max_tokens=max_tokens
        )
        chunks: list[Chunk] = []
        finished: Finished | None = None
        begin = first = last = time.perf_counter()
        async for event in self._client.generate(generation, timeout_s=TIMEOUT_S):
            if isinstance(event, Chunk):
                last = time.perf_counter()
                first = last if not chunks else first
                chunks.append(event)
            elif isinstance(event, Finished):
                finished = event
        if finished is None or not chunks:
            raise BenchError("the gateway ended a stream before its text was finished")
        return Sample(
            "".join(chunk.text for chunk in chunks),
            tuple(token for chunk in chunks for token in chunk.token_ids),
            first - begin,
            last - begin,
            len(chunks[0].token_ids),
            finished.receipt,
        )


async def arrivals(client: GatewayClient, generation: Generation) -> AsyncGenerator[tuple[float, int]]:
    """When tokens come (`time.perf_counter`), and how many. Closing it cancels the session."""
    async for event in client.generate(generation, timeout_s=TIMEOUT_S):
        if isinstance(event, Chunk) and event.token_ids:
            yield time.perf_counter(), len(event.token_ids)


class TransformersArm:
    """`transformers` in a process of its own (`bench.reference`), asleep between its prompts."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked = itertools.count()
        self._answers: dict[int | None, asyncio.Future[dict[str, Any]]] = {}
        self._ended: BenchError | None = None

    @property
    def pid(self) -> int:
        """Process id, also of its session."""
        return self._process.pid

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt greedily. Raises `BenchError`."""
        assert self._process.stdin is not None
        number = next(self._asked)
        answer = self.expect(number)
        request = {"id": number, "prompt": prompt, "max_tokens": max_tokens}
        with suppress(ConnectionError):  # it has ended: whoever reads says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        made = await answer
        return Sample(made["text"], tuple(made["token_ids"]), made["first_s"], made["seconds"])

    def expect(self, number: int | None) -> asyncio.Future[dict[str, Any]]:
        """The line with this number, when it comes; None is the first line: the model is loaded."""
        future = asyncio.get_running_loop().create_future()
        if self._ended is not None:
            future.set_exception(self._ended)
        self._answers[number] = future
        return future

    async def read(self) -> None:
        """Pass every line to its waiter until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            made = json.loads(line)
            answer = self._answers.pop(made["id"])
            if not answer.done():  # whoever asked may have gone
                answer.set_result(made)
        status = await self._process.wait()
        self._ended = BenchError(f"the transformers process ended with status {status}")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._ended)


@asynccontextmanager
async def transformers_arm(
    plan: Plan, progress: Progress, *flags: str, name: str = TRANSFORMERS
) -> AsyncIterator[TransformersArm]:
    """The process, running with these flags of `bench.reference`; gone when the block is left.

    Enter it from the main thread, and before the verifier starts, which sizes its KV memory by what it finds
    free. Raises `BenchError`.
    """
    progress(f"starting: {name}")
    command = [sys.executable, "-m", "bench.reference", "--model", str(plan.model.folder)]
    command += ["--dtype", plan.dtype, "--threads", str(plan.threads), *flags]
    command += ["--chat"] if plan.model.can_chat else []
    with (plan.logs / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *tether.command(tuple(command)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
    arm = TransformersArm(process)
    loaded = arm.expect(None)
    reader = asyncio.create_task(arm.read())
    try:
        await loaded
        yield arm
    finally:
        reader.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
