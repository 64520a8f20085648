"""A round answers verdicts with trees, keeps sessions apart and forgets what has ended."""

from __future__ import annotations

import pytest

from drafter_svc import methods
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.rounds import Counters, Joining, Message, Rounds, TreeLimits
from drafter_svc.runner import Runner
from drafter_svc.tenants import Tenants
from paceline.features import NO_FEATURES
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.verdict import Verdict
from tests.drafting import DrivenRounds

VOCAB = 100
LIMITS = TreeLimits(vocab_size=VOCAB, nodes=8, depth=4)


def hypothesis(session_id: str = "s", epoch: int = 1, ids: tuple[int, ...] = (1, 2, 3, 1, 2)) -> Hypothesis:
    return Hypothesis(SessionKey(session_id, epoch), SamplingParams(max_tokens=50), ids)


def unwelcomed() -> DrivenRounds:
    return DrivenRounds(Tenants(methods.create("lookup", VOCAB), most=4), LIMITS)


@pytest.fixture
def rounds() -> DrivenRounds:
    ready = unwelcomed()
    ready.welcome()
    return ready


def bases(drafted: Message) -> list[tuple[str, int]]:
    return [(key.session_id, base) for key, base, _ in drafted.trees]


def test_a_session_joins_with_its_first_tree(rounds: DrivenRounds) -> None:
    drafted = rounds.attach(hypothesis())
    assert drafted.joins == [Joining(SessionKey("s", 1), 5, NO_FEATURES)]
    assert bases(drafted) == [("s", 5)]
    assert drafted.trees[0][2].tokens[0] == 3


def test_sessions_attached_before_the_welcome_join_with_it() -> None:
    rounds = unwelcomed()
    assert not rounds.attach(hypothesis("a"))
    rounds.attach(hypothesis("b"))
    drafted = rounds.welcome()
    assert [join.key.session_id for join in drafted.joins] == ["a", "b"]
    assert bases(drafted) == [("a", 5), ("b", 5)]


def test_one_message_of_verdicts_gives_one_message_of_trees(rounds: DrivenRounds) -> None:
    a, b = hypothesis("a"), hypothesis("b")
    rounds.attach(a)
    rounds.attach(b)
    drafted = rounds.verdicts(
        [Verdict(a.key, 5, (3, 1), draft_budget=8), Verdict(b.key, 5, (3,), draft_budget=8)]
    )
    assert bases(drafted) == [("a", 7), ("b", 6)]


def test_no_budget_no_tree_until_there_is_one(rounds: DrivenRounds) -> None:
    known = hypothesis()
    rounds.attach(known)
    assert not rounds.verdicts([Verdict(known.key, 5, (3,), draft_budget=0)])
    [(_, base, tree)] = rounds.verdicts([Verdict(known.key, 6, (1,), draft_budget=1)]).trees
    assert (base, len(tree)) == (7, 1)


def test_a_finished_session_is_forgotten(rounds: DrivenRounds) -> None:
    known = hypothesis()
    rounds.attach(known)
    assert not rounds.verdicts([Verdict(known.key, 5, (3,), draft_budget=8, finished=True)])
    assert "s" not in rounds.rounds


def test_verdicts_of_another_epoch_or_session_change_nothing(rounds: DrivenRounds) -> None:
    known = hypothesis(epoch=2)
    rounds.attach(known)
    assert not rounds.verdicts(
        [Verdict(SessionKey("s", 1), 5, (9,), draft_budget=8), Verdict(SessionKey("t", 1), 5, (9,))]
    )
    assert known.base_length == 5


def test_a_later_epoch_replaces_and_an_earlier_is_ignored(rounds: DrivenRounds) -> None:
    rounds.attach(hypothesis(epoch=2))
    assert not rounds.attach(hypothesis(epoch=1))
    assert not rounds.attach(hypothesis(epoch=2, ids=(7,)))
    drafted = rounds.attach(hypothesis(epoch=3, ids=(4, 5, 6, 4)))
    assert drafted.joins == [Joining(SessionKey("s", 3), 4, NO_FEATURES)]
    assert drafted.trees[0][2].tokens[0] == 5
    assert len(rounds.rounds) == 1


def test_a_gap_is_asked_for_once_then_the_session_is_left(rounds: DrivenRounds) -> None:
    known = hypothesis()
    rounds.attach(known)
    assert rounds.verdicts([Verdict(known.key, 9, (3,), draft_budget=8)]).joins == [
        Joining(known.key, 5, NO_FEATURES)
    ]
    assert rounds.verdicts([Verdict(known.key, 10, (3,), draft_budget=8)]).leaves == ["s"]
    assert "s" not in rounds.rounds


def test_a_session_left_in_the_midst_of_a_message_is_drafted_for_no_more(
    rounds: DrivenRounds,
) -> None:
    known = hypothesis()
    rounds.attach(known)
    verdicts = [Verdict(known.key, base, (3,), draft_budget=8) for base in (5, 9, 10)]
    drafted = rounds.verdicts(verdicts)
    assert drafted.leaves == ["s"]
    assert not drafted.trees
    assert "s" not in rounds.rounds


def test_a_gap_that_is_filled_goes_on(rounds: DrivenRounds) -> None:
    known = hypothesis()
    rounds.attach(known)
    rounds.verdicts([Verdict(known.key, 9, (3,), draft_budget=8)])
    drafted = rounds.verdicts([Verdict(known.key, 5, (3, 1, 2, 3, 3), draft_budget=8)])
    assert bases(drafted) == [("s", 10)]


def test_a_session_whose_ids_the_model_lacks_is_not_joined() -> None:
    rounds = unwelcomed()
    rounds.attach(hypothesis(ids=(1, VOCAB)))
    assert not rounds.welcome()
    assert not len(rounds.rounds)


def test_a_verifier_that_returns_with_another_model_gets_another_method() -> None:
    first, second = (Tenants(methods.create("lookup", VOCAB), most=0) for _ in range(2))
    rounds, before = Rounds(Counters()), Runner(first)
    rounds.attach(hypothesis())
    rounds.welcome([before], LIMITS)
    before.draft_now(rounds.asks())
    assert (len(first), len(second)) == (1, 0)
    after = Runner(second)
    assert rounds.welcome([after], LIMITS).joins == [Joining(SessionKey("s", 1), 5, NO_FEATURES)]
    after.draft_now(rounds.asks())
    assert (len(first), len(second)) == (0, 1)


def test_counters_count_what_was_sent_and_accepted() -> None:
    rounds = unwelcomed()
    rounds.welcome()
    known = hypothesis()
    sent = len(rounds.attach(known).trees[0][2])
    rounds.verdicts([Verdict(known.key, 5, (3, 1), accepted=1, drafted=sent, draft_budget=0)])
    counters = rounds.counters
    assert (counters.trees, counters.drafted_tokens, counters.accepted_tokens) == (1, sent, 1)


def test_sessions_not_heard_of_are_idle(rounds: DrivenRounds) -> None:
    rounds.attach(hypothesis())
    assert list(rounds.rounds.idle(older_than=3600)) == []
    assert list(rounds.rounds.idle(older_than=-1)) == ["s"]
