"""Time that a row's draw takes by the sampling parameters that its session gives; no model runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from bench.results import Document
from bench.system import Plan, Progress

ROWS = 16
PROMPT_TOKENS = 256
TEXT_TOKENS = 1024
_WORDS = 16


def asked(vocab: int) -> dict[str, dict[str, Any]]:
    """What each measured session asks for beside its temperature."""
    ids = range(0, vocab, max(1, vocab // _WORDS))
    each: dict[str, dict[str, Any]] = {
        "presence_penalty": {"presence_penalty": 0.5},
        "frequency_penalty": {"frequency_penalty": 0.5},
        "repetition_penalty": {"repetition_penalty": 1.1},
        "logit_bias": {"logit_bias": tuple((token, 1.0) for token in ids)},
        "bad_words": {"bad_words": tuple((token, token + 1) for token in ids if token + 1 < vocab)},
        "allowed_token_ids": {"allowed_token_ids": frozenset(range(min(vocab, 4096)))},
    }
    together = {name: value for fields in each.values() for name, value in fields.items()}
    return {"nothing": {}, **each, "all of these": together, "typical_p": {"typical_p": 0.9}}


async def measure(plan: Plan, progress: Progress, *, rounds: int) -> Document:
    """Each case greedily and with a temperature, once a round, the first round not counted."""
    import torch
    from transformers import AutoConfig

    from paceline.engine.logits.draw import targets
    from paceline.engine.logits.history import History
    from paceline.engine.logits.session import LogitsRow, SessionLogits
    from paceline.sampling import SamplingParams

    torch.set_num_threads(plan.threads)
    vocab = AutoConfig.from_pretrained(plan.model.folder).get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, vocab, generator=generator) * 3
    text = torch.randint(vocab, (PROMPT_TOKENS + TEXT_TOKENS,), generator=generator).tolist()

    def row(number: int, temperature: float, fields: Mapping[str, Any]) -> LogitsRow:
        params = SamplingParams(1, temperature=temperature, seed=number, **fields)
        return LogitsRow(SessionLogits(params, History(text, PROMPT_TOKENS)), len(text))

    cases = {
        (name, temperature): [row(number, temperature, fields) for number in range(ROWS)]
        for name, fields in asked(vocab).items()
        for temperature in (0.0, 1.0)
    }
    times: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    progress("warming up", 0, rounds + 1)
    for number in range(rounds + 1):
        if number:
            progress(f"round {number}", number)
        for case, rows in cases.items():
            started = time.perf_counter()
            targets(logits, rows)
            if number:
                times[case].append(time.perf_counter() - started)
    progress("done", rounds + 1)
    return {
        "rows": ROWS,
        "vocab_size": vocab,
        "text_tokens": len(text),
        "cases": [
            {
                "asked": name,
                "temperature": temperature,
                "milliseconds_per_row": round(statistics.median(seen) * 1e3 / ROWS, 4),
                "fastest_milliseconds_per_row": round(min(seen) * 1e3 / ROWS, 4),
            }
            for (name, temperature), seen in times.items()
        ],
    }


def table(document: Mapping[str, Any]) -> Table:
    """One row per case."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("asked for")
    for header in ("temperature", "ms/row", "fastest"):
        made.add_column(header, justify="right")
    for case in document["cases"]:
        made.add_row(
            case["asked"],
            f"{case['temperature']:g}",
            f"{case['milliseconds_per_row']:.3f}",
            f"{case['fastest_milliseconds_per_row']:.3f}",
        )
    return made
