"""What the measurement at the start makes of a machine whose costs are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.engine.blocks import BlockTask
from paceline.engine.rows import Segment
from verifier_svc import warmup
from verifier_svc.cost import EDGES

BLOCK_SIZE = 128
# Seconds: of a step, of each row, of its logits, of each block that a row reads, and of each session's own.
STEP, ROW, LOGITS, READ, APART = 0.02, 0.001, 0.0003, 0.0002, 0.0005


class Machine:
    """An engine whose forwards take what the formula says, on a clock of its own."""

    block_size = BLOCK_SIZE

    def __init__(self) -> None:
        self.now = 0.0
        self.blocks = 100
        self.shape = SimpleNamespace(max_context=8192)
        # Blocks that were made fit to be read.
        self.prepared: set[int] = set()
        self.forwards: dict[int, int] = {}
        # The first forwards of so many rows take a second more.
        self.disturbed_rows = 0
        self.disturbances = 1
        self.highest_position = 0

    def forward(self, segments: Sequence[Segment], block_tasks: Sequence[BlockTask] = ()) -> Any:
        self.prepared |= {task.block for task in block_tasks}
        for segment in segments:
            assert self.prepared.issuperset(segment.blocks)
            last = segment.root_index + bool(segment.tree_tokens)
            self.highest_position = max(self.highest_position, last)
        rows = sum(segment.num_rows for segment in segments)
        logits = sum(1 + len(segment.tree_tokens) for segment in segments)
        blocks = sum(
            (len(segment.run) + len(segment.tree_tokens)) * (segment.start // BLOCK_SIZE)
            for segment in segments
        )
        apart = len({segment.blocks for segment in segments}) - 1
        self.now += STEP + ROW * rows + LOGITS * logits + READ * blocks + APART * apart
        if rows == self.disturbed_rows and self.forwards.get(rows, 0) < self.disturbances:
            self.now += 1.0
        self.forwards[rows] = self.forwards.get(rows, 0) + 1
        return _Logits()


class _Logits:
    def __getitem__(self, place: object) -> _Logits:
        return self

    def item(self) -> float:
        return 0.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


def _measure(machine: Machine) -> Any:
    return warmup.measure(machine, draft_rows=256)  # type: ignore[arg-type]


def test_costs_are_what_steps_take(machine: Machine) -> None:
    cost = _measure(machine)
    for rows in EDGES:
        assert cost.seconds(rows, 1) == pytest.approx(STEP + (ROW + LOGITS) * rows)
    assert cost.seconds(1, 11) - cost.seconds(1, 1) == pytest.approx(10 * APART)
    prompt = cost.prompt_seconds(1, 1, prompt_rows=95, prompt_blocks=4)
    assert prompt == pytest.approx(STEP + ROW * 96 + LOGITS * 1 + READ * 4 * 95)


def test_where_there_is_one_block_rows_are_measured_all_the_same(machine: Machine) -> None:
    machine.blocks = 1
    cost = _measure(machine)
    assert cost.seconds(64, 1) == cost.seconds(64, 50) == pytest.approx(STEP + (ROW + LOGITS) * 64)


def test_a_step_that_was_disturbed_is_timed_again(machine: Machine) -> None:
    machine.disturbed_rows = 4
    assert _measure(machine).seconds(4, 1) == pytest.approx(STEP + (ROW + LOGITS) * 4)


def test_a_width_that_was_always_disturbed_counts_as_the_next(machine: Machine) -> None:
    """Wider ones count as at least as dear, so all of them would look dear."""
    machine.disturbed_rows, machine.disturbances = 6, 100
    cost = _measure(machine)
    assert cost.seconds(6, 1) == cost.seconds(8, 1) == pytest.approx(STEP + (ROW + LOGITS) * 8)


def test_long_steps_are_timed_less_often_than_short_ones(machine: Machine) -> None:
    _measure(machine)
    assert 1 < machine.forwards[256] < machine.forwards[4]


@pytest.mark.parametrize("max_context", [2, 64, 127, 128, 129, 1024, 2048])
def test_no_row_stands_past_the_context(machine: Machine, max_context: int) -> None:
    """Models with learned positions have no others: they died at the start."""
    machine.shape.max_context = max_context
    cost = _measure(machine)
    assert machine.highest_position < max_context
    assert cost.seconds(64, 1) == pytest.approx(STEP + (ROW + LOGITS) * 64)
