"""A target's hidden states at each position of a recording, handed to methods as verifiers send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from bench.recording import Recording, Target
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Method

# Positions that are handed over at once: a verifier's chunk of some layers of a small model.
_POSITIONS = 256


class Treatment(StrEnum):
    """Which states a method gets, to see what it makes of them."""

    TRUE = "true"
    ZERO = "zero"
    # Those of the question before.
    OTHER = "other"


@dataclass(slots=True)
class States:
    """The states of one recording after the other, in their order."""

    target: Target
    layers: tuple[int, ...]
    treatment: Treatment = Treatment.TRUE
    _before: Tensor | None = None

    def of(self, recording: Recording) -> Tensor:
        """States [positions, layers, width] of a recording's prompt and text."""
        true = self.target.states([*recording.prompt, *recording.text], self.layers)
        before, self._before = self._before, true
        if self.treatment is Treatment.TRUE:
            return true
        if self.treatment is Treatment.ZERO or before is None:
            return torch.zeros_like(true)
        return before.repeat(-(-len(true) // len(before)), 1, 1)[: len(true)]


def hand_over(methods: Sequence[Method], session: Hypothesis, states: Tensor) -> None:
    """Give methods what they lack of `states` [positions, layers, width], of all positions with a key."""
    # The last id's key is computed by the step that verifies its tree.
    end = session.base_length - 1
    for method in methods:
        while (start := method.lacks_from(session)) is not None and start < end:
            part = states[start : min(end, start + _POSITIONS)].contiguous()
            method.take_states(session, start, memoryview(part.view(torch.uint8).numpy().tobytes()))
            if (method.lacks_from(session) or 0) <= start:
                break
