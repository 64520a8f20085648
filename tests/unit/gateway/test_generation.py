"""What a record keeps of a request is what the next gateway goes on with."""

from __future__ import annotations

import json
from dataclasses import replace

from gateway.caller import Caller
from gateway.generation import Form, Generation
from gateway.reading import Reading
from paceline.logprobs import LogprobsWanted
from paceline.sampling import SamplingParams
from paceline.session import SessionKey, SpeculationLimits

CALLER = Caller("a")
WANTED = Generation(
    "m",
    (1, 2),
    SamplingParams(9),
    ("stop",),
    form=Form("chat", index=2, echo=True, reading=Reading("think", tool_format="hermes", tools=("now",))),
    logprobs=LogprobsWanted(top=2),
    cache_salt="mine",
    limits=SpeculationLimits(5, 2, "text"),
)


def test_a_record_keeps_all_that_the_answer_depends_on() -> None:
    assert Generation.recorded(WANTED.record(SessionKey("s", 1), CALLER)) == (WANTED, CALLER)


def test_a_record_of_an_earlier_release_asks_for_nothing_new() -> None:
    record = WANTED.record(SessionKey("s", 1), CALLER)
    form = {"kind": "chat", "include_usage": True, "created": 5, "continuous_usage": False}
    earlier = {"caller": "a", "stops": ["stop"], "speculation": False, "form": form}
    found, caller = Generation.recorded(replace(record, reply=json.dumps(earlier)))
    assert caller == CALLER
    assert found == replace(
        WANTED, form=Form("chat", True, 5), speculation=False, cache_salt="", limits=SpeculationLimits()
    )
