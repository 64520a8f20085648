"""What padding costs: one engine with the same drafts and kernels, unpadded and padded, by batch size.

The table of EMS-SD (arXiv 2405.07542, table 2) for this engine: speed over plain decoding of the same batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.results import Document, per, ratio
from bench.system import Plan, Progress

PLAIN = "plain"
PADDED = "padded"
UNPADDED_PROMPTS = "only prompts unpadded"
UNPADDED = "unpadded"
# EMS-SD's gain over its padded method, of the tokens per second in its table.
PUBLISHED = {2: 1.09, 4: 1.25, 8: 1.59, 16: 1.97, 24: 2.14}


async def measure(plan: Plan, progress: Progress, *, batches: Sequence[int], rounds: int) -> Document:
    """At each batch size every arm decodes the same prompts, `rounds` times others; no service runs.

    The prompts' own keys are computed before and not timed, so that the time of padding them counts for
    nobody. Raises `ModelError` of the engine, `RequestError` of a chat template.
    """
    import torch

    from bench.lockstep import Counts, Lockstep, Shape
    from gateway.chat import Chat, ChatTurn
    from gateway.prompt import Prompts
    from paceline.engine.model import Decoder, choose_device

    arms = {
        PLAIN: Shape(drafts=False),
        PADDED: Shape(pad_inputs=True, pad_kv=True, pad_prompts=True),
        UNPADDED_PROMPTS: Shape(pad_inputs=True, pad_kv=True),
        "only KV unpadded": Shape(pad_inputs=True),
        "only inputs unpadded": Shape(pad_kv=True, pad_prompts=True),
        UNPADDED: Shape(),
    }
    progress("loading the model", 0, rounds * len(batches))
    torch.set_num_threads(plan.threads)
    decoder = Decoder.load(plan.model.folder, device=choose_device("auto"), dtype=getattr(torch, plan.dtype))
    tokenizer = Prompts(str(plan.model.folder))
    chat = plan.model.can_chat
    prompts = [
        (
            tokenizer.from_chat(Chat([ChatTurn("user", asked.text)]))
            if chat
            else tokenizer.from_text(asked.text)
        ).ids()
        for asked in plan.questions
    ]
    Lockstep(decoder, prompts[:2], max_tokens=16).run(Shape(pad_inputs=True))
    seconds: dict[tuple[int, str], list[float]] = {(batch, arm): [] for batch in batches for arm in arms}
    counted: dict[tuple[int, str], list[Counts]] = {key: [] for key in seconds}
    same: dict[tuple[int, str], int] = dict.fromkeys(seconds, 0)
    done = 0
    for number in range(rounds):
        for batch in batches:
            progress(f"{batch} sessions", done)
            done += 1
            chosen = [prompts[(number * batch + index) % len(prompts)] for index in range(batch)]
            lockstep = Lockstep(decoder, chosen, max_tokens=plan.max_tokens)
            texts = {}
            names = list(arms)
            for arm in names[number % len(names) :] + names[: number % len(names)]:
                started = time.perf_counter()
                texts[arm], counts = lockstep.run(arms[arm])
                counted[batch, arm].append(counts)
                seconds[batch, arm].append(time.perf_counter() - started)
            for arm, text in texts.items():
                same[batch, arm] += sum(map(list.__eq__, text, texts[PLAIN]))
    progress("done", done)
    rows = []
    for batch in batches:
        total = {arm: sum(seconds[batch, arm]) for arm in arms}
        rows.append(
            {
                "batch": batch,
                "unpadded_over_padded": ratio(total[PADDED], total[UNPADDED]),
                "unpadded_over_padded_but_for_prompts": ratio(total[UNPADDED_PROMPTS], total[UNPADDED]),
                "published_unpadded_over_padded": PUBLISHED.get(batch),
                "unpadded_over_padded_by_round": [
                    ratio(*pair)
                    for pair in zip(seconds[batch, PADDED], seconds[batch, UNPADDED], strict=True)
                ],
                "arms": {
                    arm: {
                        "tokens_per_second": round(
                            per(batch * plan.max_tokens, statistics.mean(seconds[batch, arm])), 1
                        ),
                        "over_plain": ratio(total[PLAIN], total[arm]),
                        "padding_rows": _share(counted[batch, arm], "padding_rows", "rows"),
                        "hidden_keys": _share(counted[batch, arm], "hidden_keys", "keys"),
                        "same_text": same[batch, arm],
                        "texts": batch * rounds,
                    }
                    for arm in arms
                },
            }
        )
    return {
        **{f"unpadded_over_padded_at_{row['batch']}": row["unpadded_over_padded"] for row in rows},
        "rows": rows,
    }


def _share(counted: Sequence[object], part: str, whole: str) -> float:
    """Of all rounds."""
    parts, wholes = (sum(getattr(counts, name) for counts in counted) for name in (part, whole))
    return round(per(parts, wholes), 3)


def table(document: Mapping[str, Any]) -> Table:
    """Tokens per second and speed over plain decoding, one row per batch size."""
    rows = document["rows"]
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="in brackets: over plain decoding")
    made.add_column("batch", justify="right")
    for arm in rows[0]["arms"]:
        made.add_column(arm, justify="right", min_width=10)
    made.add_column("unpadded / padded", justify="right")
    made.add_column("EMS-SD's", justify="right")
    for row in rows:
        figures = [
            f"{arm['tokens_per_second']:.0f} ({arm['over_plain']:.2f})" for arm in row["arms"].values()
        ]
        published = row["published_unpadded_over_padded"]
        made.add_row(
            str(row["batch"]),
            *figures,
            f"{row['unpadded_over_padded']:.2f}",
            f"{published:.2f}" if published else "",
        )
    return made
