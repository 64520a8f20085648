"""One training loop for all methods: budget, rates, checkpoints, progress and curves."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from paceline.training.batches import epoch
from paceline.training.corpus import Text

# Share of the budget in which the rate rises, and what is left of it at the end.
_WARM_UP: Final = 0.03
_LAST_RATE: Final = 0.05
# Seconds between checkpoints.
_CHECKPOINT_S: Final = 120.0

Figures = dict[str, float]


class Learner(Protocol):
    """A model that is trained."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def length(self, text: Text) -> int:
        """Ids of a text that are used."""

    def loss(self, texts: Sequence[Text]) -> Tensor:
        """Mean loss of some texts."""

    def measure(self, batches: Sequence[Sequence[Text]]) -> Figures:
        """How good it is on texts."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What changes the weights, with the highest rates."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When training ends, whichever comes first; and with which numbers it is done."""

    # Ids seen, each time that they are.
    tokens: int
    minutes: float
    # Ids of a batch, padding among them.
    batch_tokens: int
    seed: int
    # Times that curves get a point.
    points: int = 12


@dataclass(slots=True)
class Progress:
    """How far training has come."""

    epoch: int = 0
    # Batches of the epoch that are done.
    batch: int = 0
    seen: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)

    def share(self, budget: Budget) -> float:
        """Of the budget."""
        return min(1.0, max(self.seen / budget.tokens, self.seconds / 60 / budget.minutes))


def rate(share: float) -> float:
    """The factor on the learning rate when `share` of the budget is spent."""
    if share < _WARM_UP:
        return (share + 1e-3) / (_WARM_UP + 1e-3)
    return _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * share)) / 2


class Training:
    """Trains until the budget is spent; goes on where a checkpoint ended."""

    def __init__(
        self,
        learner: Learner,
        texts: Callable[[], Sequence[Text]],
        checks: Mapping[str, Sequence[Text]],
        budget: Budget,
        checkpoint: Path,
    ) -> None:
        """`texts` is asked at the beginning of each epoch; `checks`: texts to measure it on, by the name of
        their curve.
        """
        self.progress = Progress()
        self._learner = learner
        self._texts = texts
        self._budget = budget
        self._checkpoint = checkpoint
        self._optimizers = learner.optimizers()
        self._rates = [[group["lr"] for group in one.param_groups] for one in self._optimizers]
        self._checks = {name: self._batched(chosen, 0) for name, chosen in checks.items()}

    def _batched(self, texts: Sequence[Text], number: int) -> list[list[Text]]:
        lengths = [self._learner.length(text) for text in texts]
        batches = epoch(lengths, self._budget.batch_tokens, seed=self._budget.seed, number=number)
        return [[texts[index] for index in batch] for batch in batches]

    def run(self, told: Callable[[Progress, float], None]) -> Progress:
        """Train to the end of the budget; `told` hears of each step how far it is, and its loss."""
        progress, budget = self.progress, self._budget
        saved = begun = time.monotonic()
        before = progress.seconds
        # Loss of the steps since the last point of the curve.
        losses: list[float] = []
        while progress.share(budget) < 1:
            for batch in self._batched(self._texts(), progress.epoch)[progress.batch :]:
                losses.append(self._step(batch))
                progress.batch += 1
                progress.seen += sum(self._learner.length(text) for text in batch)
                now = time.monotonic()
                progress.seconds = before + now - begun
                told(progress, losses[-1])
                if progress.share(budget) >= (len(progress.curve) + 1) / budget.points:
                    self._measure(sum(losses) / len(losses))
                    losses = []
                if progress.share(budget) >= 1:
                    break
                if now - saved >= _CHECKPOINT_S:
                    self.save()
                    saved = now
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
        self.save()
        return progress

    def _step(self, texts: Sequence[Text]) -> float:
        factor = rate(self.progress.share(self._budget))
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, highest in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = highest * factor
        loss = self._learner.loss(texts)
        loss.backward()
        nn.utils.clip_grad_norm_(self._learner.module.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _measure(self, loss: float) -> None:
        progress = self.progress
        progress.curve.append(
            {
                "seen": progress.seen,
                "minutes": round(progress.seconds / 60, 2),
                "loss": round(loss, 4),
                **{
                    name: {key: round(value, 4) for key, value in self._learner.measure(batches).items()}
                    for name, batches in self._checks.items()
                },
            }
        )

    def save(self) -> None:
        """Write the checkpoint; it is whole or the one before."""
        progress = self.progress
        part = self._checkpoint.with_name(self._checkpoint.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "module": self._learner.module.state_dict(),
                "optimizers": [one.state_dict() for one in self._optimizers],
                "progress": [
                    progress.epoch,
                    progress.batch,
                    progress.seen,
                    progress.seconds,
                    progress.curve,
                ],
            },
            part,
        )
        os.replace(part, self._checkpoint)

    def resume(self) -> bool:
        """Take the checkpoint where there is one."""
        if not self._checkpoint.exists():
            return False
        held = torch.load(self._checkpoint, weights_only=True)
        self._learner.module.load_state_dict(held["module"])
        for optimizer, state in zip(self._optimizers, held["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(*held["progress"])
        return True
