"""States are read on any thread while steps run, whatever becomes of the sessions' blocks meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.engine import StepInput, StepOutput
from paceline.engine.model import BLOCK_SIZE
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Session

TOKENS = 60
LAYERS = [0, 2]
# Alike for a block and a half, so that who begins later copies a block; then each its own.
BEGINNING = [5 + number % 300 for number in range(BLOCK_SIZE * 3 // 2)]
PROMPTS = {
    name: [*BEGINNING, *(100 * place + number for number in range(20))] for place, name in enumerate("abc")
}
SAMPLING = SamplingParams(max_tokens=TOKENS)


def _expected(folder: Path) -> dict[str, Tensor]:
    """transformers' hidden states [positions, LAYERS, width] of each prompt and what follows it."""
    states = {}
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    last: list[Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda module, arguments, out: last.append(out))
    with loaded(folder) as decoder, torch.inference_mode():
        for name, prompt in PROMPTS.items():
            running = Running(list(prompt), len(prompt), SAMPLING)
            generate(EngineLoop.of(decoder, blocks=4), [running], TOKENS)
            ids = torch.tensor([running.token_ids])
            hidden = model(ids, output_hidden_states=True).hidden_states
            states[name] = torch.stack([hidden[0], last[-1]], dim=2)[0]
    return states


def _preemptions() -> float:
    return REGISTRY.get_sample_value("paceline:num_preemptions_total") or 0.0


def test_states_are_read_while_steps_run_and_sessions_take_one_anothers_blocks(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _expected(tiny_model)
    ended: set[str] = set()
    seen: dict[str, int] = dict.fromkeys(PROMPTS, 0)

    def begin(tested: LoopUnderTest, *names: str) -> None:
        for name in names:
            prompt = PROMPTS[name]
            key = SessionKey(name, 1)
            tested.add(Session(key, len(prompt), list(prompt), SAMPLING, len(prompt) + TOKENS))

    def on_step(tested: LoopUnderTest, step: SessionStep) -> None:
        if step.outcome.finish is not None:
            ended.add(step.key.session_id)
            if len(ended) == 1:
                # They find its text.
                begin(tested, "b", "c")

    def read(tested: LoopUnderTest) -> None:
        """All states that there are."""
        for name in PROMPTS:
            with tested.loop.table.lock:
                session = tested.loop.table.get(name)
                count = session.num_computed if session is not None else 0
                if session is None or not count:
                    continue
                states = tested.engine.read_states(session.blocks, 0, count, LAYERS)
            torch.testing.assert_close(states, expected[name][:count], atol=1e-4, rtol=1e-4)
            seen[name] = max(seen[name], count)

    with (
        loaded(tiny_model) as decoder,
        # One session's blocks.
        running_loop(decoder, on_step, prefix_cache=True, blocks=3, keep_states=LAYERS) as tested,
    ):
        assert tested.engine.states is not None
        # Whatever is read and was not written shows.
        tested.engine.states.states.fill_(torch.nan)
        step = tested.engine.step

        def read_and_step(given: StepInput) -> StepOutput:
            # Planned, and not computed: blocks that are to be copies are not yet.
            read(tested)
            return step(given)

        monkeypatch.setattr(tested.engine, "step", read_and_step)
        before = _preemptions()
        begin(tested, "a")
        while len(ended) < len(PROMPTS) and tested.loop.failure is None and not tested.faults:
            read(tested)
        assert tested.loop.failure is None
        assert not tested.faults
        assert _preemptions() > before
    assert all(count > len(PROMPTS[name]) for name, count in seen.items()), seen
