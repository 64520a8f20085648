from __future__ import annotations

import asyncio
import sys

import pytest

from bench.arms import TransformersArm
from bench.system import BenchError

# Answers the second of two questions first, then ends.
SCRIPT = """
import json, sys
print(json.dumps({"id": None}), flush=True)
asked = [json.loads(sys.stdin.readline()) for _ in range(2)]
for one in reversed(asked):
    made = {"id": one["id"], "text": one["prompt"], "token_ids": [1], "first_s": 0.1, "seconds": 0.2}
    print(json.dumps(made), flush=True)
"""


async def test_answers_go_to_whoever_asked_and_none_is_waited_for_in_vain() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    arm = TransformersArm(process)
    loaded = arm.expect(None)
    reader = asyncio.create_task(arm.read())
    await loaded
    samples = await asyncio.gather(arm.answer("a", 1), arm.answer("b", 1))
    assert [sample.text for sample in samples] == ["a", "b"]
    with pytest.raises(BenchError, match="ended with status 0"):
        await arm.answer("c", 1)
    await reader
    with pytest.raises(BenchError, match="ended with status 0"):
        await arm.answer("d", 1)
