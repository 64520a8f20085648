"""Clients of a fleet whose pods come and go: what they stream, and whether it is the undisturbed text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from openai import AsyncOpenAI, OpenAIError

from paceline.client import Chunk, GatewayClient, GatewayError, Generation
from tests.chaos import clients as resuming
from tests.images.checks import MODEL, CheckError, hold

# A long answer, during which something is done to the fleet.
LONG = Generation(text="again and again and again", max_tokens=3000, temperature=0, ignore_eos=True)
SHORT = replace(LONG, max_tokens=400, temperature=0.8)
# A gateway that was killed starts anew on a machine that is busy.
_RESUME_SECONDS = 240.0
_ANSWER_SECONDS = 900.0

# The pieces of an answer's text. Whatever goes wrong is raised.
Ask = Callable[[Generation], AsyncIterator[str]]


def by_openai(url: str) -> Ask:
    """OpenAI's client, which tries nothing again."""

    async def ask(asked: Generation) -> AsyncIterator[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(
                model=MODEL,
                prompt=asked.text or "",
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                seed=asked.seed,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": asked.ignore_eos},
            )
            tokens = 0
            async for piece in stream:
                for choice in piece.choices:
                    yield choice.text
                tokens = piece.usage.completion_tokens if piece.usage else tokens
        hold(tokens == asked.max_tokens, f"the answer has {tokens} tokens of {asked.max_tokens}")

    return ask


def by_events(url: str) -> Ask:
    """One that reconnects with the id of its last event, as those of server-sent events do."""

    async def ask(asked: Generation) -> AsyncIterator[str]:
        told = resuming.over_http([url], asked, _ANSWER_SECONDS, resume_seconds=_RESUME_SECONDS)
        tokens = 0
        async for event in told:
            if isinstance(event, resuming.Heard):
                yield event.text
            elif isinstance(event, resuming.Finished):
                tokens = event.tokens or 0
        hold(tokens == asked.max_tokens, f"the answer has {tokens} tokens of {asked.max_tokens}")

    return ask


def by_grpc(address: str) -> Ask:
    """Paceline's own."""

    async def ask(asked: Generation) -> AsyncIterator[str]:
        tokens = 0
        async with GatewayClient(address) as client:
            async for event in client.generate(asked, timeout_s=_ANSWER_SECONDS):
                if isinstance(event, Chunk):
                    tokens += len(event.token_ids)
                    yield event.text
        hold(tokens == asked.max_tokens, f"the answer has {tokens} tokens of {asked.max_tokens}")

    return ask


async def text_of(ask: Ask, asked: Generation, disturb: Callable[[], None] | None = None) -> str:
    """A whole answer; `disturb` is called once while it comes. Raises `CheckError`."""
    pieces: list[str] = []
    try:
        async for piece in ask(asked):
            pieces.append(piece)
            if len(pieces) == 20 and disturb is not None:
                await asyncio.to_thread(disturb)
    except (OpenAIError, GatewayError, resuming.FailedError, OSError) as error:
        raise CheckError(f"a client's error after {len(pieces)} pieces: {error!r}") from error
    return "".join(pieces)


@dataclass(slots=True)
class Reader:
    """Asks the same again and again, and knows the undisturbed answer."""

    ask: Ask
    asked: Generation
    undisturbed: str
    answers: int = field(default=0, init=False)

    async def read(self, until: asyncio.Event) -> None:
        """Read answers. Raises `CheckError` for an error, and for another text."""
        while not until.is_set():
            text = await text_of(self.ask, self.asked)
            hold(text == self.undisturbed, f"answer {self.answers} to seed {self.asked.seed} is another one")
            self.answers += 1
