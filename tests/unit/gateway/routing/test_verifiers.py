"""Tables of which verifier a session goes to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.texts import HeldTexts, RoutedText
from gateway.routing.verifiers import Reason, choose_verifier
from gateway.routing.views import VerifierView
from paceline.prefix import TextKeys
from paceline.v1 import verifier_pb2

BLOCK = 4
PROMPT = RoutedText(range(40))
MEASURED = {"prompt_token_seconds": 0.01, "step_seconds": 0.02, "session_seconds": 0.001}


def verifier(address: str, sessions: int = 0, **changes: Any) -> VerifierView:
    fields: dict[str, Any] = {
        "healthy": True,
        "draining": False,
        "model_id": "m",
        "vocab_size": 512,
        "max_context": 1024,
        "max_sessions": 10,
        "kv_free": 1000,
    }
    return VerifierView(address=address, sessions=sessions, **{**fields, **changes})


def holding(tokens: int) -> HeldTexts:
    """What a verifier has said that holds the first `tokens` of the prompt."""
    texts = HeldTexts()
    keys = TextKeys(BLOCK).of(range(40))[: tokens // BLOCK]
    texts.hear(verifier_pb2.PrefixesResponse(instance=1, cursor=9, block_size=BLOCK, added=keys))
    return texts


@pytest.mark.parametrize(
    ("pods", "avoid", "chosen"),
    [
        ([], (), None),
        ([verifier("a")], (), "a"),
        ([verifier("a", 3), verifier("b", 2)], (), "b"),
        ([verifier("a", misfit="another vocabulary"), verifier("b", 9)], (), "b"),
        ([verifier("a", misfit="another vocabulary")], (), None),
        ([verifier("a", 3, max_sessions=100), verifier("b", 2)], (), "a"),
        ([verifier("a", healthy=False), verifier("b", 9)], (), "b"),
        ([verifier("a", draining=True), verifier("b", 9)], (), "b"),
        ([verifier("a", model_id="other"), verifier("b", 9)], (), "b"),
        ([verifier("a", 10), verifier("b", 9)], (), "b"),
        ([verifier("a", 10)], (), None),
        ([verifier("a", 12)], (), None),
        ([verifier("a", healthy=False)], (), None),
        ([verifier("a"), verifier("b", 9)], ("a",), "b"),
        ([verifier("a")], ("a",), "a"),
        ([verifier("a", healthy=False)], ("a",), None),
    ],
)
def test_where_no_text_is_known_a_session_goes_to_the_verifier_with_most_room(
    pods: list[VerifierView], avoid: tuple[str, ...], chosen: str | None
) -> None:
    found = choose_verifier(pods, "m", PROMPT, avoid)
    assert (found.verifier.address if found else None) == chosen


@pytest.mark.parametrize(
    ("pods", "chosen", "reason"),
    [
        # Its beginning is there, though more sessions are.
        ([verifier("a", 5, texts=holding(32)), verifier("b")], "a", Reason.PREFIX),
        # More of it is there.
        ([verifier("a", texts=holding(32)), verifier("b", texts=holding(16))], "a", Reason.PREFIX),
        # What is cached would be computed elsewhere while its queue is worked off.
        ([verifier("a", texts=holding(32), waiting_tokens=20), verifier("b")], "a", Reason.PREFIX),
        ([verifier("a", texts=holding(32), waiting_tokens=40), verifier("b")], "b", Reason.LOAD),
        # It has no free place.
        ([verifier("a", 10, texts=holding(32)), verifier("b"), verifier("c", 1)], "b", Reason.ROOM),
        # Its KV has no room for the rest of the prompt.
        ([verifier("a", texts=holding(16), kv_free=0), verifier("b")], "b", Reason.LOAD),
        ([verifier("a", texts=holding(16), kv_free=24), verifier("b")], "a", Reason.PREFIX),
        # Nobody has any of it.
        ([verifier("a", 1), verifier("b")], "b", Reason.ROOM),
        ([verifier("a", waiting_tokens=90), verifier("b", 3)], "b", Reason.ROOM),
        # The one with slower steps is the slower one, the one with slower prompts too.
        ([verifier("a", step_seconds=0.5), verifier("b", 3)], "b", Reason.ROOM),
        ([verifier("a", prompt_token_seconds=0.1), verifier("b", 3)], "b", Reason.ROOM),
        ([verifier("a", 9, texts=holding(32))], "a", Reason.ONLY),
    ],
)
def test_a_session_goes_where_its_first_token_comes_first(
    pods: list[VerifierView], chosen: str, reason: Reason
) -> None:
    found = choose_verifier([_measured(pod) for pod in pods], "m", PROMPT)
    assert found is not None
    assert (found.verifier.address, found.reason) == (chosen, reason)


def _measured(pod: VerifierView) -> VerifierView:
    own = {name: getattr(pod, name) for name in pod.__dataclass_fields__}
    return VerifierView(**{**own, **{name: own[name] or value for name, value in MEASURED.items()}})


def test_what_it_predicts_is_said() -> None:
    found = choose_verifier([_measured(verifier("a", texts=holding(32), waiting_tokens=10))], "m", PROMPT)
    assert found is not None
    assert found.held_tokens == 32
    assert found.seconds == pytest.approx((10 + 8) * 0.01 + 0.02 + 0.001)


def test_beginnings_are_spread_and_each_goes_to_one_verifier_while_all_are_idle() -> None:
    pods = [verifier(name) for name in "abcd"]
    homes: Counter[str] = Counter()
    for number in range(200):
        same = [choose_verifier(pods, "m", RoutedText([number, *range(64), end])) for end in range(3)]
        assert len({found.verifier.address for found in same if found}) == 1
        assert same[0] is not None
        homes[same[0].verifier.address] += 1
    assert min(homes.values()) > 25


PODS = st.lists(
    st.builds(
        verifier,
        st.sampled_from("abcdef"),
        st.integers(0, 12),
        healthy=st.booleans(),
        draining=st.booleans(),
        waiting_tokens=st.integers(0, 100),
        texts=st.sampled_from([None, holding(8), holding(40)]),
    ),
    unique_by=lambda pod: pod.address,
)


@given(PODS, st.randoms())
def test_the_choice_does_not_depend_on_the_order(pods: list[VerifierView], random: Any) -> None:
    chosen = choose_verifier(pods, "m", PROMPT)
    shuffled = list(pods)
    random.shuffle(shuffled)
    assert choose_verifier(shuffled, "m", PROMPT) == chosen
    if chosen is not None:
        pod = chosen.verifier
        assert pod.healthy
        assert not pod.draining
        assert pod.sessions < pod.max_sessions
