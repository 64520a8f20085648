"""The demonstration of `paceline up`: one answer with speculation, the same without, both measured here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from paceline.cli.receipt import Measured, Recorder
from paceline.client import GatewayClient, Generation

MAX_TOKENS = 128

# An ordinary request of the kind speculation is for: an answer that reuses words of the question. The same
# drafters give little on free writing; the benchmark measures both.
PROMPT = """Correct the spelling and grammar of this paragraph and change nothing else:

The first railway in the town was opend in 1862. It carryed coal from the mines to the harbour, and twice a \
day it carryed passengers too. The station was build of red brick, and it's clock could be seen from the \
market square. When the mines closed, the railway closed with them, but the station is still their, and \
every summer the people of the town meet in it to remember the first train."""

# Another text than the prompt's, so that nothing the drafter learns from it belongs to the measured answer.
_WARM_UP = "List the days of the week, then list them again."


# Short enough for a command line, and of the same kind.
QUESTION = "Repeat this sentence three times: The quick brown fox jumps over the lazy dog."


class DemoError(Exception):
    """A generation of the demonstration did not finish."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt, decoded with speculation and without."""

    speculative: Measured
    plain: Measured

    @property
    def speed_up(self) -> float:
        """Time without speculation over time with it, for the whole request."""
        return self.plain.seconds / self.speculative.seconds

    @property
    def identical(self) -> bool:
        """Whether both gave the same tokens and the same text."""
        return self.speculative.token_ids == self.plain.token_ids and self.speculative.text == self.plain.text

    def first_difference(self) -> int:
        """Index of the first token that differs, or the shorter one's length."""
        pairs = zip(self.speculative.token_ids, self.plain.token_ids, strict=False)
        for index, (one, other) in enumerate(pairs):
            if one != other:
                return index
        return min(len(self.speculative.token_ids), len(self.plain.token_ids))


def curl(url: str, model: str, *, chat: bool) -> str:
    """A command for people: its answer is what the model thinks likeliest, and says what drafting brought."""
    asked: dict[str, object] = {"model": model, "temperature": 0, "max_tokens": 64}
    path = "chat/completions" if chat else "completions"
    asked |= {"messages": [{"role": "user", "content": QUESTION}]} if chat else {"prompt": QUESTION}
    # In quotes, for shells that take the brackets of an IPv6 address for a pattern.
    where = f"'{url}/v1/{path}'" if "[" in url else f"{url}/v1/{path}"
    return f"  curl {where} -H 'Content-Type: application/json' \\\n    -d '{json.dumps(asked)}'"


async def warm_up(client: GatewayClient) -> None:
    """Let every kernel and connection of both ways of decoding be used once."""
    for speculation in (True, False):
        await _measure(client, Generation(text=_WARM_UP, max_tokens=24, speculation=speculation))


async def speculative(client: GatewayClient, show: Callable[[str, str], None], *, chat: bool) -> Measured:
    """Decode the prompt with speculation.

    Meaningful once per fleet: a second time the drafter has learnt from the answer itself.
    """
    return await _measure(client, _request(chat=chat, speculation=True), show)


async def plain(client: GatewayClient, *, chat: bool, runs: int = 2) -> Measured:
    """Decode the prompt without drafters `runs` times; the fastest counts, in plain decoding's favour."""
    measured = [await _measure(client, _request(chat=chat, speculation=False)) for _ in range(runs)]
    return min(measured, key=lambda run: run.seconds)


def _request(*, chat: bool, speculation: bool) -> Generation:
    question = Generation.ask(PROMPT) if chat else Generation(text=PROMPT)
    return replace(question, max_tokens=MAX_TOKENS, speculation=speculation)


async def _measure(
    client: GatewayClient, generation: Generation, show: Callable[[str, str], None] | None = None
) -> Measured:
    recorder = Recorder(show)
    async for event in client.generate(replace(generation, temperature=0.0, seed=0), timeout_s=300):
        recorder.add(event)
    measured = recorder.measured()
    if measured is None:
        raise DemoError("the gateway ended a stream before its text was finished")
    return measured
