"""A session's cache salt and its client's limits of drafts, wherever the session goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from gateway.caller import ANYBODY, Caller
from gateway.events import Started
from gateway.generation import Generation
from gateway.prompt import Prompts
from paceline.net import wire
from paceline.sampling import SamplingParams
from paceline.session import SpeculationLimits
from paceline.store import MemoryStore
from tests.scripted_verifier import DIES, FINISHED, MODEL, PROMPT, ScriptedVerifier, serving, tokens

LIMITS = SpeculationLimits(5, 2, "text")


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> Prompts:
    return Prompts(str(tiny_model))


async def test_every_verifier_of_a_session_is_told_them(prompts: Prompts) -> None:
    verifier = ScriptedVerifier([tokens(3, 10), DIES], [tokens(4, 11), FINISHED])
    wanted = Generation(MODEL, PROMPT, SamplingParams(max_tokens=6), cache_salt="mine", limits=LIMITS)
    async with serving(verifier, store=MemoryStore()) as sessions:
        started = [
            event
            async for event in sessions.generate(wanted, ANYBODY, prompts.detokenizer(), INVALID_SPAN)
            if isinstance(event, Started)
        ]
        claimed = await sessions.claim(started[0].session_id, ANYBODY)
    assert [request.cache_salt for request in verifier.opened] == ["mine", "mine"]
    assert [wire.limits_from_proto(request.speculation) for request in verifier.opened] == [LIMITS, LIMITS]
    assert (claimed.wanted.cache_salt, claimed.wanted.limits) == ("mine", LIMITS)


def test_drafters_know_each_salt_of_each_holder_as_a_tenant_of_its_own() -> None:
    one, other = Caller("a", tenant="t1"), Caller("b", tenant="t2")
    tenants = [caller.tenant_for(salt) for caller in (one, other) for salt in ("", "x", "y")]
    assert len(set(tenants)) == 6
    assert (tenants[0], tenants[3]) == ("t1", "t2")
    assert one.tenant_for("x") == Caller("a", tenant="t1").tenant_for("x")
