from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from bench.system import BenchError, Plan, run
from paceline.local.process import ServiceDiedError
from paceline.models.store import LocalModel


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(LocalModel("m", tmp_path, "m"), [], 64, "float32", 1, None, tmp_path / "logs")


async def fail(error: Exception) -> None:
    raise error


def test_run_makes_the_log_folder_and_returns_what_was_measured(plan: Plan) -> None:
    async def measurement() -> int:
        return 7

    assert run(measurement(), plan) == 7
    assert plan.logs.is_dir()


@pytest.mark.parametrize("error", [BenchError("why"), ServiceDiedError("why")])
def test_run_says_why_it_failed_and_where_the_logs_are(plan: Plan, error: Exception) -> None:
    with pytest.raises(BenchError, match=r"why\nlogs: .*logs"):
        run(fail(error), plan)


def test_run_finds_the_reason_in_a_group_of_tasks(plan: Plan) -> None:
    async def measurement() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(BenchError("inner")))

    with pytest.raises(BenchError, match="inner"):
        run(measurement(), plan)


def test_run_hides_no_bug(plan: Plan) -> None:
    with pytest.raises(ZeroDivisionError):
        run(fail(ZeroDivisionError()), plan)


def test_sigterm_stops_a_run(plan: Plan) -> None:
    async def measurement() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    with pytest.raises(BenchError, match="stopped"):
        run(measurement(), plan)


def test_a_model_without_a_template_gets_the_text_as_it_is(plan: Plan) -> None:
    plain = plan.generation("hello", speculation=False)
    assert (plain.text, plain.chat, plain.max_tokens, plain.temperature) == ("hello", (), 64, 0.0)
    (plan.model.folder / "chat_template.jinja").touch()
    chat = plan.generation("hello", speculation=True, temperature=0.8, max_tokens=1)
    assert (chat.text, chat.chat[0].content, chat.max_tokens, chat.temperature) == (None, "hello", 1, 0.8)
