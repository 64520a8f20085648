"""Hard masks: tokens that may not be drawn, whatever their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.logits.session import LogitsRow


def hide(values: Tensor, rows: Sequence[LogitsRow]) -> dict[int, Exception]:
    """Set what may not be drawn to -inf, in place: values [rows, vocab].

    Returns what went wrong with a row, by its index; such a row is left with all that it has.
    """
    faults: dict[int, Exception] = {}
    keeping: dict[int, NDArray[np.bool_]] = {}
    banned: dict[int, NDArray[np.int64]] = {}
    for place, row in enumerate(rows):
        try:
            if row.matcher is not None or len(row.session.allowed):
                keeping[place] = _kept(row, values.shape[1])
            if ids := [each for each in _banned(row) if len(each)]:
                banned[place] = np.concatenate(ids)
        except Exception as error:
            # One session's constraint, or its text: the others go on.
            faults[place] = error
    if keeping:
        kept = torch.from_numpy(np.stack(list(keeping.values()))).to(values.device)
        places = torch.tensor(list(keeping), device=values.device)
        values[places] = values[places].masked_fill(~kept, -torch.inf)
    if banned:
        at = np.repeat(list(banned), [len(ids) for ids in banned.values()])
        indices = torch.from_numpy(np.stack([at, np.concatenate(list(banned.values()))])).to(values.device)
        values[indices[0], indices[1]] = -torch.inf
    return faults


def _kept(row: LogitsRow, vocab: int) -> NDArray[np.bool_]:
    """Which tokens [vocab] the session's constraint and its list of ids leave."""
    kept = np.ones(vocab, np.bool_)
    if len(row.session.allowed):
        kept[:] = False
        kept[row.session.allowed] = True
    if row.matcher is not None:
        kept &= _bits(row.matcher.mask(row.path), vocab)
    return kept


def _bits(words: NDArray[np.uint32], vocab: int) -> NDArray[np.bool_]:
    """A matcher's mask as one flag per token. Raises `ValueError` for one that is too short."""
    bits = np.unpackbits(words.astype("<u4", copy=False).view(np.uint8), bitorder="little")
    if len(bits) < vocab:
        raise ValueError(f"a mask of {len(bits)} tokens is too short for a vocabulary of {vocab}")
    return bits[:vocab].view(np.bool_)


def _banned(row: LogitsRow) -> Iterator[NDArray[np.int64]]:
    session = row.session
    if row.endless:
        yield session.stop_ids
    if not session.params.bad_words:
        return
    yield session.banned
    if session.phrases:
        text, length, path = session.history, row.committed, row.path
        following = session.phrases.get(text.last(length, path), ())
        yield np.array([last for begun, last in following if text.ends_with(length, path, begun)], np.int64)
