"""From a row's logits to those that its token is drawn from, but for temperature and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.engine.logits.adjust import add_bias, penalise_generated, penalise_repetition
from paceline.engine.logits.masks import hide
from paceline.engine.logits.session import LogitsRow

# Stands for infinity among the logits of a broken row; penalties keep it finite.
_HUGE = 1e30

_NOTHING_LEFT = (
    "what the request asks for leaves no token to draw: allowed_token_ids, bad_words, a constraint and "
    "min_tokens, before which nothing ends a text, forbid all of them"
)


class NothingLeftError(Exception):
    """Bans, lists of ids and constraints leave a row no token."""


@dataclass(frozen=True, slots=True)
class Processed:
    """Logits [rows, vocab], and what went wrong with a row, by its index."""

    logits: Tensor
    faults: dict[int, Exception] = field(default_factory=dict)


def process(logits: Tensor, rows: Sequence[LogitsRow]) -> Processed:
    """Logits [rows, vocab] as the rows' sessions ask for them, in single precision at least.

    Masks first, so that nothing brings a token back; then repetition, frequency and presence penalties and
    biases. A row depends on nothing but itself. Where logits of tokens that may be drawn are not numbers, or
    infinite, one of these tokens is drawn all the same.
    """
    values = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    faults = hide(values, rows)
    broken = torch.nonzero(~values.amax(1).isfinite()).flatten().tolist()
    for place in broken:
        if place not in faults:
            faults |= _mend(values, logits, place, rows[place])
    sound = [place for place in range(len(rows)) if place not in faults]
    adjusted = values if len(sound) == len(rows) else values[sound]
    asking = [rows[place] for place in sound]
    penalise_repetition(adjusted, asking)
    penalise_generated(adjusted, asking)
    add_bias(adjusted, asking)
    if adjusted is not values:
        values[sound] = adjusted
    return Processed(values, faults)


def _mend(values: Tensor, logits: Tensor, place: int, row: LogitsRow) -> dict[int, Exception]:
    """Give a row without a largest finite logit finite ones where it may draw; a fault if that is nowhere."""
    legal = torch.zeros_like(values[place : place + 1])
    hide(legal, [row])
    if not (legal == 0).any():
        return {place: NothingLeftError(_NOTHING_LEFT)}
    finite = torch.nan_to_num(logits[place].to(values.dtype), nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
    values[place] = torch.where(legal[0] == 0, finite, -torch.inf)
    return {}
