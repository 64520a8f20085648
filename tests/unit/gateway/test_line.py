"""The law of every line: first come, first served of a holder, and holders in turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.line import Line, may_wait

HOLDERS = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), HOLDERS, st.integers(0, 3)),
        st.tuples(st.just("leave"), HOLDERS, st.integers(0, 30)),
        st.tuples(st.just("serve"), st.just(""), st.just(0)),
    ),
    max_size=80,
)


def test_holders_take_turns_and_nobody_overtakes_their_own() -> None:
    line: Line[str] = Line()
    for number, holder in enumerate("aaaabbc"):
        line.join(holder, number, f"{holder}{number}")
    served = []
    while (first := line.first()) is not None:
        served.append(first)
        line.serve()
    assert served == ["a0", "b4", "c6", "a1", "b5", "a2", "a3"]


def test_who_comes_back_has_the_place_it_came_with() -> None:
    line: Line[int] = Line()
    for number in (1, 2):
        line.join("a", number, number)
    line.join("a", 0, 0)
    assert line.first() == 0


@given(STEPS)
def test_nobody_is_overtaken(steps: list[tuple[str, str, int]]) -> None:
    line: Line[tuple[str, int]] = Line()
    waiting: dict[tuple[str, int], Counter[str]] = {}
    for number, (step, holder, choice) in enumerate(steps):
        if step == "join":
            # Some come back with the number that they had before.
            mine = 4 * number - choice
            line.join(holder, mine, (holder, mine))
            waiting[holder, mine] = Counter()
        elif step == "leave":
            line.leave(holder, choice)
            waiting.pop((holder, choice), None)
        elif (first := line.first()) is not None:
            line.serve()
            passed = waiting.pop(first)
            assert all(count <= 1 for other, count in passed.items() if other != first[0])
            assert first[1] == min([first[1], *(n for holder, n in waiting if holder == first[0])])
            for each, counts in waiting.items():
                # Since this holder was served last, the others had a turn each at the most.
                if each[0] == first[0]:
                    counts.clear()
                else:
                    counts[first[0]] += 1
        assert len(line) == len(waiting)
    for counts in waiting.values():
        assert all(count <= 1 for count in counts.values())


@given(st.integers(2, 50), st.lists(st.sampled_from("aaaaabc"), max_size=200))
def test_one_holders_crowd_leaves_room_for_others(room: int, arrivals: list[str]) -> None:
    inside: Counter[str] = Counter()
    for holder in arrivals:
        if may_wait(inside[holder], inside.total(), room):
            inside[holder] += 1
        assert inside.total() <= room
    # Of one that has nobody in, one more is taken while there is any room, and a lone holder leaves half.
    assert may_wait(0, inside.total(), room) == (inside.total() < room)
    if set(inside) == {"a"}:
        assert inside["a"] <= (room + 1) // 2


def test_the_lowest_priority_of_a_holder_is_served_first_and_no_other_holder_waits_for_it() -> None:
    line: Line[str] = Line()
    came = [("a", 0), ("a", 5), ("b", 0), ("a", -5), ("a", -5), ("b", -9)]
    for number, (holder, priority) in enumerate(came):
        line.join(holder, number, f"{holder}{number}", priority)
    line.leave("a", 3)
    served = []
    while (first := line.first()) is not None:
        served.append(first)
        line.serve()
    assert served == ["a4", "b5", "a0", "b2", "a1"]
