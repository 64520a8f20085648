"""Changes of logits that a session asks for: penalties for what stands in the text, and biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.logits.session import LogitsRow

# Ids of a row, and a number for each.
_Numbers = tuple[NDArray[np.int64], NDArray[np.float64]]


def penalise_repetition(values: Tensor, rows: Sequence[LogitsRow]) -> None:
    """Divide positive and multiply negative logits of ids in prompt or text by a factor, in place.

    As transformers and vLLM do (Keskar et al. 2019, "CTRL", section 4.1).
    """
    _change(values, rows, _repeated, lambda old, penalty: torch.where(old < 0, old * penalty, old / penalty))


def penalise_generated(values: Tensor, rows: Sequence[LogitsRow]) -> None:
    """Subtract `frequency_penalty` for each time that an id was generated, `presence_penalty` once, in place.

    As OpenAI and vLLM do; the prompt does not count.
    """
    _change(values, rows, _frequent, lambda old, penalty: old - penalty)
    _change(values, rows, _present, lambda old, penalty: old - penalty)


def add_bias(values: Tensor, rows: Sequence[LogitsRow]) -> None:
    """Add `logit_bias`, in place."""
    _change(values, rows, _biased, lambda old, bias: old + bias)


def _repeated(row: LogitsRow) -> _Numbers | None:
    penalty = row.params.repetition_penalty
    if penalty == 1:
        return None
    history = row.session.history
    generated, _ = history.generated(row.committed, row.path)
    # An id in both comes twice, with the same result.
    ids = np.concatenate([history.prompt_ids, generated])
    return ids, np.full(len(ids), penalty)


def _frequent(row: LogitsRow) -> _Numbers | None:
    if not row.params.frequency_penalty:
        return None
    ids, counts = row.session.history.generated(row.committed, row.path)
    return ids, counts.astype(np.float64) * row.params.frequency_penalty


def _present(row: LogitsRow) -> _Numbers | None:
    if not row.params.presence_penalty:
        return None
    ids, _ = row.session.history.generated(row.committed, row.path)
    return ids, np.full(len(ids), row.params.presence_penalty)


def _biased(row: LogitsRow) -> _Numbers | None:
    return row.session.bias if row.params.logit_bias else None


def _change(
    values: Tensor,
    rows: Sequence[LogitsRow],
    numbers: Callable[[LogitsRow], _Numbers | None],
    change: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Change some values of many rows at once: `numbers` says of a row which, and by what."""
    found = [(place, *each) for place, row in enumerate(rows) if (each := numbers(row)) is not None]
    if not found:
        return
    at = np.repeat([place for place, _, _ in found], [len(ids) for _, ids, _ in found])
    where = _tensor(np.stack([at, np.concatenate([ids for _, ids, _ in found])]), values)
    by = _tensor(np.concatenate([each for _, _, each in found]), values).to(values.dtype)
    values[where[0], where[1]] = change(values[where[0], where[1]], by)


def _tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
