"""What drafters say of single sessions: who may say what, and what comes of it."""

from __future__ import annotations

import pytest

from paceline.features import NO_FEATURES, FeatureGrant
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TreeError
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2
from verifier_svc.control import DraftControl
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.features import StateFlow
from verifier_svc.session_drafts import DraftRejectedError, SessionDrafts, TreeBounds
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.standing import JUDGED_TREES, Standings

PROMPT = 3
GRANT = FeatureGrant((1,), 8, "float32")


class World:
    """A verifier's drafts, with one session of four ids, and two drafters."""

    def __init__(self) -> None:
        self.table = SessionTable(4)
        self.streams = DrafterStreams()
        self.standings = Standings()
        self.aside: list[tuple[str, float]] = []
        control = DraftControl(self.table, draft_rows=16, max_tree_nodes=4, max_wait_seconds=0.0)
        self.drafts = SessionDrafts(
            self.table,
            control,
            self.streams,
            self.standings,
            TreeBounds(vocab_size=100, max_nodes=4, max_depth=2),
            on_aside=lambda key, seconds: self.aside.append((key.session_id, seconds)),
        )
        self.session = Session(
            SessionKey("s", 2), PROMPT, [1, 2, 3, 4], SamplingParams(max_tokens=9), PROMPT + 9
        )
        self.table.add(self.session)
        self.one, self.two = (
            self.streams.open(name, name, 0, self.drafts.ledger()) for name in ("one", "two")
        )
        self.named = self.streams.open(
            "named", "named", 0, self.drafts.ledger(sources=2), sources=["text", "eagle"]
        )

        self.granted = self.streams.open(
            "granted", "g", 0, self.drafts.ledger(), flow=StateFlow(GRANT, 1 << 16)
        )

    def join(
        self,
        stream: DrafterStream,
        *,
        known: int = 4,
        epoch: int = 2,
        session_id: str = "s",
        features_from: int = 0,
    ) -> float:
        key = session_pb2.SessionKey(session_id=session_id, epoch=epoch)
        join = verifier_pb2.Join(key=key, known_length=known, features_from=features_from)
        return self.drafts.join(join, stream)

    def states(self) -> list[tuple[int, int]]:
        """Positions from and to which the granted stream may be sent states, where all are computed."""
        flow = self.granted.flow
        assert flow is not None
        self.granted.take()
        return [(run.start, run.start + run.count) for run in flow.following(lambda key: 4)]

    def tree(
        self,
        stream: DrafterStream,
        *,
        base: int = 4,
        tokens: tuple[int, ...] = (7,),
        sources: tuple[int, ...] = (),
    ) -> float:
        key = session_pb2.SessionKey(session_id="s", epoch=2)
        parents = range(-1, len(tokens) - 1)
        chain = tree_pb2.TokenTree(
            key=key,
            base_length=base,
            token=tokens,
            parent=parents,
            log_prob=[-0.1] * len(tokens),
            source=sources,
        )
        return self.drafts.tree(chain, stream)


@pytest.fixture
def world() -> World:
    return World()


def test_a_join_is_answered_with_what_the_drafter_misses(world: World) -> None:
    assert world.join(world.one, known=3) == 0.0
    ((verdict,), _) = world.one.take()
    assert (verdict.base_length, verdict.committed, verdict.draft_budget) == (3, (4,), 4)
    assert world.session.drafting.stream_id == world.one.stream_id
    assert world.one.drafting


def test_a_later_join_takes_the_session_over_and_the_first_drafter_is_told(world: World) -> None:
    world.join(world.one)
    world.tree(world.one)
    world.one.take()
    world.join(world.two)
    ((told,), _) = world.one.take()
    assert told.finished
    assert world.session.drafting.stream_id == world.two.stream_id
    assert world.session.drafting.offers == ()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"session_id": "other"}, "NOT_FOUND"),
        ({"epoch": 1}, "STALE_EPOCH"),
        ({"known": 2}, "BAD_BASE"),
        ({"known": 5}, "BAD_BASE"),
    ],
)
def test_a_join_that_cannot_be_taken_changes_nothing(
    world: World, said: dict[str, object], code: str
) -> None:
    with pytest.raises(DraftRejectedError) as rejected:
        world.join(world.one, **said)  # type: ignore[arg-type]
    assert rejected.value.code == verifier_pb2.SessionErrorCode.Value(f"SESSION_ERROR_CODE_{code}")
    assert world.session.drafting.stream_id == 0


def test_a_tree_waits_for_the_next_step(world: World) -> None:
    world.join(world.one)
    assert world.tree(world.one, tokens=(7, 8)) == 0.0
    assert [offer.tree.tokens for offer in world.session.drafting.offers] == [(7, 8)]


def test_a_tree_of_a_stream_that_has_not_joined_is_rejected(world: World) -> None:
    world.join(world.one)
    with pytest.raises(DraftRejectedError, match="has not joined"):
        world.tree(world.two)
    assert world.session.drafting.offers == ()


@pytest.mark.parametrize("tokens", [(100,), (1, 2, 3), (1, 2, 3, 4, 5)], ids=["id", "depth", "nodes"])
def test_a_tree_keeps_to_its_bounds(world: World, tokens: tuple[int, ...]) -> None:
    world.join(world.one)
    with pytest.raises(TreeError):
        world.tree(world.one, tokens=tokens)
    assert world.session.drafting.offers == ()


def test_more_trees_than_were_asked_for_are_rejected(world: World) -> None:
    world.join(world.one)
    # One beside the join, and two for its answer.
    for _ in range(3):
        world.tree(world.one)
    with pytest.raises(DraftRejectedError, match="more trees than"):
        world.tree(world.one)


def test_each_source_may_answer_a_verdict_twice(world: World) -> None:
    world.join(world.named)
    for source in (0, 1, 0, 1, 1):
        world.tree(world.named, sources=(source,))
    with pytest.raises(DraftRejectedError, match="more trees than"):
        world.tree(world.named, sources=(0,))


@pytest.mark.parametrize("sources", [(2,), (0, 0)], ids=["unnamed", "too many"])
def test_a_node_comes_from_a_source_that_was_named(world: World, sources: tuple[int, ...]) -> None:
    world.join(world.named)
    with pytest.raises(TreeError, match="source"):
        world.tree(world.named, sources=sources)
    world.join(world.one)
    with pytest.raises(TreeError, match="source"):
        world.tree(world.one, sources=(1,))


def test_many_trees_for_one_step_are_work_that_nobody_asked_for(world: World) -> None:
    world.join(world.one)
    world.one.ledger.told(10)
    seconds = [world.tree(world.one) for _ in range(12)]
    assert seconds[:8] == [0.0] * 8
    assert all(seconds[8:])


def test_a_drafter_leaves_its_own_session_only(world: World) -> None:
    world.join(world.one)
    assert world.drafts.leave("s", world.two) > 0.0
    assert world.session.drafting.stream_id == world.one.stream_id
    assert world.drafts.leave("s", world.one) == 0.0
    assert world.session.drafting.stream_id == 0


def test_a_stream_ends_once_and_its_sessions_go_on_without_it(world: World) -> None:
    world.join(world.one)
    world.tree(world.one)
    world.drafts.end(world.one)
    assert world.streams.get(world.one.stream_id) is None
    assert (world.session.drafting.stream_id, world.session.drafting.offers) == (0, ())
    assert not world.aside
    world.join(world.two)
    world.drafts.end(world.one)
    assert world.session.drafting.stream_id == world.two.stream_id


def test_sessions_of_a_drafter_that_is_put_aside_are_told(world: World) -> None:
    world.join(world.one)
    for _ in range(JUDGED_TREES):
        world.standings.tree("one", sound=False)
    world.drafts.end(world.one)
    ((session_id, seconds),) = world.aside
    assert session_id == "s"
    assert seconds > 0


def test_sound_trees_speak_for_their_drafter(world: World) -> None:
    world.join(world.one)
    world.one.ledger.told(JUDGED_TREES)
    for _ in range(JUDGED_TREES // 2):
        world.tree(world.one)
    for _ in range(JUDGED_TREES // 2):
        world.standings.tree("one", sound=False)
    assert world.standings.reason_aside("one") is None


@pytest.mark.parametrize("start", [0, 2, 3, 4])
def test_a_join_says_from_where_on_states_are_wanted(world: World, start: int) -> None:
    world.join(world.granted, features_from=start)
    assert world.states() == ([(start, 3)] if start < 3 else [])


def test_a_joined_session_may_be_joined_again_for_states_that_were_lost(world: World) -> None:
    world.join(world.granted, features_from=3)
    world.join(world.granted, features_from=1)
    assert world.states() == [(1, 3)]
    world.join(world.granted, features_from=NO_FEATURES)
    assert world.states() == []


@pytest.mark.parametrize("start", [5, NO_FEATURES - 1])
def test_states_of_positions_that_are_not_there_are_refused(world: World, start: int) -> None:
    with pytest.raises(DraftRejectedError, match=f"features_from {start} lies past what is committed 4"):
        world.join(world.granted, features_from=start)
    assert world.session.drafting.stream_id == 0
    assert world.states() == []


def test_where_no_states_were_granted_it_does_not_matter_what_is_lacked(world: World) -> None:
    world.join(world.one, features_from=1000)
    assert world.session.drafting.stream_id == world.one.stream_id


def test_states_that_a_drafter_was_sent_are_owed_for_by_the_next(world: World) -> None:
    world.session.states_sent = 3
    world.join(world.granted, features_from=1)
    flow = world.granted.flow
    assert flow is not None
    world.granted.take()
    (run,) = flow.following(lambda key: 4)
    assert flow.sent(run)
    assert flow.owed_bytes == 2 * GRANT.position_bytes
