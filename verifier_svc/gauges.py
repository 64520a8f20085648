"""A verifier's state, read anew at each scrape: an idle engine makes no step that could set it."""

from __future__ import annotations

import time

from verifier_svc import metrics
from verifier_svc.load import waiting
from verifier_svc.step import StepLoop


def export(loop: StepLoop) -> None:
    """Let each scrape read the state of `loop`, without its lock: a scrape must not wait for a step."""
    metrics.RUNNING.set_function(lambda: len(loop.table) - waiting(loop.table.in_order()))
    metrics.WAITING.set_function(lambda: waiting(loop.table.in_order()))
    metrics.KV_TOTAL_TOKENS.set(loop.allocator.total * loop.allocator.block_size)
    metrics.KV_USAGE.set_function(lambda: 1 - loop.allocator.free / loop.allocator.total)
    metrics.WANTED_TREES.read = lambda: loop.load.wanted_trees
    metrics.MISSING_TREES.read = lambda: loop.load.missing_trees
    metrics.EXPOSED_DRAFT_SECONDS.read = lambda: loop.load.exposed_seconds
    metrics.EXPOSED_REPLY_SECONDS.read = lambda: loop.load.exposed_reply_seconds
    metrics.ENGINE_SILENT_SECONDS.set_function(lambda: _silent_seconds(loop))


def _silent_seconds(loop: StepLoop) -> float:
    """Zero before its first round: warming up takes minutes."""
    return time.monotonic() - loop.beat_at if loop.beats else 0.0
