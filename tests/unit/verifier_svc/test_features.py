"""Which hidden states go down next: once, in order, within the window, and in turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paceline.features import MAX_CHUNK_BYTES, FeatureGrant, FeatureRequest
from paceline.session import SessionKey
from verifier_svc.features import KeptStates, Run, StateFlow, shares

WEIGHTS, OTHERS = "a" * 32, "b" * 32
KEPT = KeptStates((0, 3, 6), 8, "bfloat16", WEIGHTS)
GRANT = FeatureGrant((3, 6), 8, "bfloat16")
SIZE = GRANT.position_bytes
KEYS = [SessionKey(name, 1) for name in "abcd"]


def request(*layers: int, window: int = 1 << 16, weights: str = WEIGHTS) -> FeatureRequest:
    return FeatureRequest(layers, window, weights)


def everything(flow: StateFlow, lengths: dict[SessionKey, int]) -> Iterator[list[Run]]:
    """Messages until nothing more may be sent."""
    while runs := flow.following(lengths.get):
        assert all(flow.sent(run) for run in runs)
        yield runs


@pytest.mark.parametrize("weights", [WEIGHTS, ""])
def test_a_request_for_kept_layers_of_these_weights_is_granted(weights: str) -> None:
    assert KEPT.grant([request(3, 6, window=70_000, weights=weights)]) == (GRANT, 70_000)


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [request(3, 6, weights=OTHERS)],
        [request(3, 5)],
        [request(7)],
    ],
    ids=["none", "other weights", "a layer that is not kept", "a layer that is not there"],
)
def test_what_is_not_kept_is_not_granted(requests: list[FeatureRequest]) -> None:
    assert KEPT.grant(requests) is None
    assert KeptStates().grant([*requests, request(0, weights="")]) is None


def test_numbers_of_a_type_that_does_not_travel_are_not_granted() -> None:
    assert KeptStates((0, 3, 6), 8, "float64", WEIGHTS).grant([request(3, 6)]) is None


def test_the_first_request_that_can_be_served_is_granted() -> None:
    wanted = [request(3, 6, weights=OTHERS), request(5), request(6), request(3)]
    assert KEPT.grant(wanted) == (FeatureGrant((6,), 8, "bfloat16"), 1 << 16)


def test_a_window_or_a_message_without_room_for_one_position_is_not_granted() -> None:
    wide = KeptStates((0, 1), 1 << 14, "float32", WEIGHTS)
    assert wide.grant([request(0, 1)]) is None
    assert wide.grant([request(0, 1), request(0)]) == (FeatureGrant((0,), 1 << 14, "float32"), 1 << 16)
    wider = KeptStates((0, 1), 1 << 18, "float32", WEIGHTS)
    assert wider.grant([request(0, 1, window=1 << 26)]) is None


@given(st.lists(st.integers(0, 50), max_size=9), st.integers(0, 200))
def test_shares_are_equal_but_for_those_who_want_less(wanted: list[int], room: int) -> None:
    given_out = shares(wanted, room)
    assert sum(given_out) == min(room, sum(wanted))
    for got, most in zip(given_out, wanted, strict=True):
        assert 0 <= got <= most
        # Whoever is left wanting has no less than anybody else, but for the last one that cannot be divided.
        assert got == most or all(other <= got + 1 for other in given_out)


def test_a_window_opens_again_by_what_was_taken_in() -> None:
    flow = StateFlow(GRANT, 10 * SIZE)
    flow.join(KEYS[0], 5)
    flow.told(KEYS[0], 100)
    lengths = {KEYS[0]: 40}
    (run,) = flow.following(lengths.get)
    assert (run.start, run.count) == (5, 10)
    assert flow.sent(run)
    assert flow.following(lengths.get) == []
    assert flow.take(3 * SIZE)
    (run,) = flow.following(lengths.get)
    assert (run.start, run.count) == (15, 3)


@pytest.mark.parametrize("said", [1, 3 * SIZE - 1, 10 * SIZE + 1, 2**64 - 1])
def test_what_cannot_have_been_taken_in_opens_nothing(said: int) -> None:
    flow = StateFlow(GRANT, 10 * SIZE)
    flow.join(KEYS[0], 0)
    flow.told(KEYS[0], 100)
    lengths = {KEYS[0]: 100}
    list(everything(flow, lengths))
    assert flow.take(3 * SIZE)
    list(everything(flow, lengths))
    # The three that were taken in have made room for three more.
    assert flow.take(said) is (3 * SIZE <= said <= 13 * SIZE)
    assert (flow.following(lengths.get) == []) is not (3 * SIZE < said <= 13 * SIZE)


def test_states_never_go_ahead_of_their_text() -> None:
    flow = StateFlow(GRANT, 1 << 16)
    flow.join(KEYS[0], 0)
    assert flow.following({KEYS[0]: 9}.get) == []
    flow.told(KEYS[0], 4)
    ((run,),) = everything(flow, {KEYS[0]: 9})
    # The id behind each of them is known.
    assert (run.start, run.count) == (0, 3)
    # The same session of a later owner is another one.
    flow.told(SessionKey("a", 2), 9)
    assert flow.following({KEYS[0]: 9}.get) == []


def test_a_session_that_lost_its_states_goes_on_where_it_was() -> None:
    flow = StateFlow(GRANT, 1 << 16)
    flow.join(KEYS[0], 0)
    flow.told(KEYS[0], 9)
    list(everything(flow, {KEYS[0]: 6}))
    for computed in (0, 3, 6):
        assert flow.following({KEYS[0]: computed}.get) == []
    ((run,),) = everything(flow, {KEYS[0]: 8})
    assert (run.start, run.count) == (6, 2)


def test_what_was_read_for_an_earlier_join_is_not_sent() -> None:
    flow = StateFlow(GRANT, 1 << 16)
    flow.join(KEYS[0], 0)
    flow.told(KEYS[0], 9)
    (stale,) = flow.following({KEYS[0]: 6}.get)
    flow.join(KEYS[0], 2)
    assert not flow.sent(stale)
    assert flow.sent_bytes == 0
    flow.told(KEYS[0], 9)
    ((run,),) = everything(flow, {KEYS[0]: 6})
    assert (run.start, run.count) == (2, 4)
    (stale,) = flow.following({KEYS[0]: 9}.get)
    flow.leave("a")
    assert not flow.sent(stale)


def test_what_is_sent_again_is_paid_for_before_more_follows() -> None:
    flow = StateFlow(GRANT, 1 << 16)
    flow.join(KEYS[0], 4, sent_before=10)
    flow.told(KEYS[0], 50)
    ((run,),) = everything(flow, {KEYS[0]: 20})
    assert (run.count, flow.owed_bytes) == (16, 6 * SIZE)
    assert flow.following({KEYS[0]: 30}.get) == []
    flow.paid()
    ((run,),) = everything(flow, {KEYS[0]: 30})
    assert (run.count, flow.owed_bytes) == (10, 0)


def test_one_long_prompt_holds_nobody_up() -> None:
    large = FeatureGrant((0,), 1 << 14, "float32")
    flow = StateFlow(large, 64 << 20)
    lengths = dict(zip(KEYS, [5000, 3, 2, 4], strict=True))
    for key in KEYS:
        flow.join(key, 0)
        flow.told(key, 5000)
    message = flow.following(lengths.get)
    # 16 positions fill a message.
    assert [(run.key, run.count) for run in message] == [
        (KEYS[0], 7),
        (KEYS[1], 3),
        (KEYS[2], 2),
        (KEYS[3], 4),
    ]


def test_where_there_is_room_for_one_at_a_time_all_take_turns() -> None:
    flow = StateFlow(GRANT, SIZE)
    lengths = dict.fromkeys(KEYS, 50)
    for key in KEYS:
        flow.join(key, 0)
        flow.told(key, 50)
    order = []
    for _ in range(12):
        (run,) = flow.following(lengths.get)
        assert flow.sent(run)
        assert flow.take(flow.sent_bytes)
        order.append(run.key)
    assert order == KEYS * 3


class Flows(RuleBasedStateMachine):
    """A flow against the plainest account of what a drafter was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = StateFlow(GRANT, 24 * SIZE)
        # Of joined sessions: the next position, text that was told, states that are there.
        self.next: dict[SessionKey, int] = {}
        self.told: dict[SessionKey, int] = {}
        self.computed: dict[SessionKey, int] = {}
        # Read, and not sent yet; and whether its session was joined anew or left since.
        self.reading: list[tuple[Run, bool]] = []
        self.taken = 0

    @rule(key=st.sampled_from(KEYS), start=st.integers(0, 60))
    def join(self, key: SessionKey, start: int) -> None:
        self.flow.join(key, start)
        self.next[key], self.told[key] = start, 0
        self.computed.setdefault(key, 0)
        self._goes(key)

    @rule(key=st.sampled_from(KEYS))
    def leave(self, key: SessionKey) -> None:
        self.flow.leave(key.session_id)
        self.next.pop(key, None)
        self._goes(key)

    @rule(key=st.sampled_from(KEYS), length=st.integers(0, 80))
    def tell(self, key: SessionKey, length: int) -> None:
        self.flow.told(key, length)
        if key in self.next:
            self.told[key] = max(self.told[key], length)

    @rule(key=st.sampled_from(KEYS), length=st.integers(0, 80))
    def compute(self, key: SessionKey, length: int) -> None:
        """Forward by steps, back by a preemption."""
        if key in self.computed:
            self.computed[key] = length

    @rule(key=st.sampled_from(KEYS))
    def end(self, key: SessionKey) -> None:
        """The session ends; the flow finds out when it looks."""
        self.computed.pop(key, None)

    @precondition(lambda self: not self.reading)
    @rule()
    def read(self) -> None:
        runs = self.flow.following(self.computed.get)
        for key in list(self.next):
            if key not in self.computed:
                del self.next[key]
        left = {
            key: min(self.computed[key], self.told[key] - 1) - start
            for key, start in self.next.items()
            if min(self.computed[key], self.told[key] - 1) > start
        }
        room = 24 - (self.flow.sent_bytes - self.taken) // SIZE
        assert sum(run.count for run in runs) == min(room, sum(left.values()))
        for run in runs:
            assert run.start == self.next[run.key]
            assert 0 < run.count <= left[run.key]
        self.reading = [(run, False) for run in runs]

    @rule()
    def send(self) -> None:
        for run, gone in self.reading:
            assert self.flow.sent(run) is not gone
            if not gone:
                self.next[run.key] += run.count
        self.reading = []

    @rule(said=st.integers(0, 200))
    def acknowledge(self, said: int) -> None:
        possible = self.taken <= said * SIZE <= self.flow.sent_bytes
        assert self.flow.take(said * SIZE) is possible
        if possible:
            self.taken = said * SIZE

    @invariant()
    def keeps_to_its_window(self) -> None:
        assert 0 <= self.flow.sent_bytes - self.taken <= self.flow.window_bytes
        assert len(self.flow) <= len(KEYS)

    def _goes(self, key: SessionKey) -> None:
        self.reading = [(run, gone or run.key == key) for run, gone in self.reading]


TestFlows = Flows.TestCase


def test_a_message_holds_no_more_than_it_may() -> None:
    flow = StateFlow(GRANT, 64 << 20)
    flow.join(KEYS[0], 0)
    flow.told(KEYS[0], 10**6)
    sizes = [sum(run.count for run in runs) * SIZE for runs in everything(flow, {KEYS[0]: 100_000})]
    assert max(sizes) == MAX_CHUNK_BYTES
    assert sum(sizes) == 100_000 * SIZE
