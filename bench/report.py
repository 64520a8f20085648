"""What a run means: rates, ratios, a table for people and JSON for scripts."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import Sample
from bench.dataset import TASKS
from bench.decode import ARMS, PLAIN, SPECULATIVE, TRANSFORMERS, Answered
from paceline import __version__

NOTE = (
    "Each prompt once per arm, one decode at a time, the order of arms rotating. Times from the request, "
    "prefill included, to the last token; ratios of total tokens over total time. The drafter's tables start "
    "empty but for the warm-up prompt, which is in no dataset, and carry over from prompt to prompt."
)

_HEADERS = (
    "prompts",
    "transf.\ntok/s",
    "plain\ntok/s",
    "specul.\ntok/s",
    "plain/\ntransf.",
    "specul./\nplain",
    "accept.\nlength",
)


def report(
    answers: Sequence[Answered], *, about: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, Any]:
    """The whole JSON document."""
    groups = {task: [answered for answered in answers if answered.question.task == task] for task in TASKS}
    identical = sum(_identical(answered) for answered in answers)
    same_ids = sum(
        answered.samples[PLAIN].token_ids == answered.samples[TRANSFORMERS].token_ids for answered in answers
    )
    return {
        **_figures(answers),
        "identical": {"of": len(answers), "identical": identical},
        "same_as_transformers": {"of": len(answers), "same": same_ids},
        "per_task": [{"task": task, **_figures(group)} for task, group in groups.items() if group],
        "machine": machine(about),
        "config": dict(config),
        "note": NOTE,
        "samples": [_sample(answered) for answered in answers],
    }


def machine(about: Mapping[str, object]) -> dict[str, object]:
    """Where it ran, and with which libraries."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "device": about.get("device"),
        "gpu": about.get("gpu"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": about.get("torch"),
        "transformers": about.get("transformers"),
        "paceline": __version__,
    }


def table(document: Mapping[str, Any]) -> Table:
    """One row per task and one of all."""
    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_verdict(document), caption_justify="left"
    )
    made.add_column("task", no_wrap=True)
    for header in _HEADERS:
        made.add_column(header, justify="right")
    for row in document["per_task"]:
        made.add_row(row["task"], *_cells(row))
    made.add_section()
    made.add_row("all", *_cells(document), style="bold")
    return made


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all. Raises `OSError`."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)  # mkstemp keeps it from everyone else
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _figures(answers: Sequence[Answered]) -> dict[str, Any]:
    rates = {arm: _rate([answered.samples[arm] for answered in answers]) for arm in ARMS}
    decode = {arm: _decode_rate([answered.samples[arm] for answered in answers]) for arm in ARMS}
    receipts = [receipt for answered in answers if (receipt := answered.samples[SPECULATIVE].receipt)]
    steps = sum(receipt.steps for receipt in receipts)
    return {
        "speculative_over_plain": _ratio(rates[SPECULATIVE], rates[PLAIN]),
        "plain_over_transformers": _ratio(rates[PLAIN], rates[TRANSFORMERS]),
        "acceptance_length": _ratio(sum(receipt.committed_tokens for receipt in receipts), steps),
        "prompts": len(answers),
        "tokens_per_second": {arm: round(rate, 4) for arm, rate in rates.items()},
        "decode_tokens_per_second": {arm: round(rate, 4) for arm, rate in decode.items()},
        "decode_speculative_over_plain": _ratio(decode[SPECULATIVE], decode[PLAIN]),
        "decode_plain_over_transformers": _ratio(decode[PLAIN], decode[TRANSFORMERS]),
    }


def _rate(samples: Sequence[Sample]) -> float:
    return _per(sum(len(sample.token_ids) for sample in samples), sum(sample.seconds for sample in samples))


def _decode_rate(samples: Sequence[Sample]) -> float:
    """Tokens after the first arrival over the time they took."""
    tokens = sum(len(sample.token_ids) - sample.first_tokens for sample in samples)
    return _per(tokens, sum(sample.seconds - sample.first_s for sample in samples))


def _ratio(one: float, other: float) -> float:
    return round(_per(one, other), 4)


def _per(one: float, other: float) -> float:
    return one / other if other else 0.0


def _identical(answered: Answered) -> bool:
    """Whether speculation changed nothing: neither a token nor the text that reached the client."""
    plain, speculative = answered.samples[PLAIN], answered.samples[SPECULATIVE]
    return plain.token_ids == speculative.token_ids and plain.text == speculative.text


def _sample(answered: Answered) -> dict[str, Any]:
    question = answered.question
    return {
        "question_id": question.id,
        "task": question.task,
        "category": question.category,
        "order": list(answered.order),
        "identical": _identical(answered),
        **{arm: _arm_sample(sample) for arm, sample in answered.samples.items()},
    }


def _arm_sample(sample: Sample) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tokens": len(sample.token_ids),
        "seconds": round(sample.seconds, 5),
        "first_token_seconds": round(sample.first_s, 5),
        "text": sample.text,
    }
    if sample.receipt is not None:
        fields["receipt"] = asdict(sample.receipt)
    return fields


def _verdict(document: Mapping[str, Any]) -> str:
    same, reference = document["identical"], document["same_as_transformers"]
    return (
        f"with and without speculation identical: {same['identical']} of {same['of']}; "
        f"plain equals transformers: {reference['same']} of {reference['of']}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["prompts"]),
        *(f"{row['tokens_per_second'][arm]:.1f}" for arm in ARMS),
        f"{row['plain_over_transformers']:.2f}x",
        f"{row['speculative_over_plain']:.2f}x",
        f"{row['acceptance_length']:.2f}",
    ]


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
