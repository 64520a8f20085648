"""Sessions under constraints: trees are pruned, what is forced is drafted, a failure ends one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from transformers import AutoTokenizer

from bench.engine_loop import loaded
from paceline.constraints.compiler import compiled
from paceline.constraints.constraint import Constraint, Kind
from paceline.constraints.matcher import GrammarMatcher
from paceline.constraints.vocabulary import Vocabulary
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.tree import TokenTree
from tests.random_trees import tree_around
from tests.tiny import EOS_ID, VOCAB
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from tests.waiting import wait_until
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.drafting import Drafting
from verifier_svc.progress import SessionStep
from verifier_svc.readiness import ready
from verifier_svc.sessions import Session
from verifier_svc.sources import GRAMMAR

PROMPT = [5, 9, 13]
TOKENS = 300
LIST = Constraint.schema(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "a longer name": {"type": "boolean"},
                "number": {"type": "integer", "maximum": 99},
            },
            "required": ["a longer name", "number"],
            "additionalProperties": False,
        },
        "minItems": 3,
        "maxItems": 3,
    }
)
# From its second character on it takes more work than is done for it.
COSTLY = Constraint(Kind.GRAMMAR, 'start: ("x" | "y") "a"{1000000}')


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def vocabulary(tiny_model: Path) -> Vocabulary:
    return Vocabulary.of(AutoTokenizer.from_pretrained(tiny_model), "tiny", VOCAB)


def _session(
    vocabulary: Vocabulary, constraint: Constraint | None, name: str = "s", **fields: object
) -> Session:
    ends = frozenset({EOS_ID})
    sampling = SamplingParams(
        max_tokens=TOKENS, temperature=0.9, seed=3, stop_token_ids=ends, constraint=constraint
    )
    start = None if constraint is None else compiled(constraint, vocabulary)
    return Session(
        key=SessionKey(name, 1),
        prompt_length=len(PROMPT),
        token_ids=list(PROMPT),
        sampling=sampling,
        length_limit=len(PROMPT) + TOKENS,
        matcher=None if start is None else GrammarMatcher(start, vocabulary, ends),
        **fields,  # type: ignore[arg-type]
    )


def _ready(session: Session, *trees: TokenTree) -> tuple[tuple[int, ...], list[set[int]]]:
    """The tokens of the merged tree, and who proposes each."""
    for tree in trees:
        session.drafting.came(tree, session.length, now=0.0)
    there = ready(session, DraftBudget(StepCost({}, 0.0), draft_rows=64, max_nodes=64))
    return there.merged.tokens, [{each.source for each in node.proposals} for node in there.merged.nodes]


def test_a_tree_keeps_what_the_constraint_allows_and_goes_on_where_it_forces(
    vocabulary: Vocabulary, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    yes, no, other = (tokenizer(text)["input_ids"][0] for text in "ynx")
    choice = Constraint(Kind.REGEX, "(y|n)other words")
    session = _session(vocabulary, choice, drafting=Drafting(stream_id=1, sources=("text", "draft")))
    tree = TokenTree((yes, other, other), (-1, -1, 0), (-0.5, -0.2, -0.5), (0, 0, 1))
    tokens, sources = _ready(session, tree)
    assert tokens[0] == yes
    assert str(tokenizer.decode(list(tokens))).startswith("yother")
    assert sources[0] == {0}
    assert all(each == {session.drafting.grammar_source} for each in sources[1:])
    plain = _session(vocabulary, choice, plain=True)
    assert _ready(plain, TokenTree((no, other), (-1, 0), (-0.5, -0.5)))[0] == (no,)


class _World:
    """A running loop, and what its sessions got."""

    def __init__(self, loop: LoopUnderTest, got: dict[str, list[int]]) -> None:
        self.loop = loop
        self.got = got

    async def run(self, *sessions: Session) -> None:
        for session in sessions:
            self.loop.add(session)
        await wait_until(
            lambda: all(each.finish_reason is not None for each in sessions), "all sessions end", 120
        )


@pytest.fixture
def world(decoder: Decoder) -> Iterator[Callable[[Callable[[LoopUnderTest, SessionStep], None]], _World]]:
    opened = []

    def made(on_step: Callable[[LoopUnderTest, SessionStep], None]) -> _World:
        got: dict[str, list[int]] = {}

        def noting(loop: LoopUnderTest, step: SessionStep) -> None:
            got.setdefault(step.key.session_id, []).extend(step.outcome.token_ids)
            on_step(loop, step)

        running = running_loop(decoder, noting, prefix_cache=True, blocks=64)
        opened.append(running)
        return _World(running.__enter__(), got)

    yield made
    for running in opened:
        running.__exit__(None, None, None)


async def test_whatever_trees_come_the_text_is_the_same_and_what_is_forced_is_counted(
    vocabulary: Vocabulary,
    world: Callable[[Callable[[LoopUnderTest, SessionStep], None]], _World],
    tiny_model: Path,
) -> None:
    random = Random(0)
    plain = _session(vocabulary, LIST, "plain", plain=True)
    drafted = _session(vocabulary, LIST, "drafted", drafting=Drafting(stream_id=1))

    def draft(loop: LoopUnderTest, step: SessionStep) -> None:
        if step.key.session_id == "drafted" and step.outcome.finish is None:
            right = text[drafted.length - len(PROMPT) :][: random.randint(0, 4)]
            tree, _ = tree_around(random, right, vocab=VOCAB)
            loop.came(drafted, tree)

    here = world(draft)
    await here.run(plain)
    text = here.got["plain"]
    assert plain.finish_reason is FinishReason.STOP
    assert not plain.source_tokens
    await here.run(drafted)
    assert here.got["drafted"] == text
    counted = {each.source: each for each in drafted.source_tokens}
    assert counted[GRAMMAR].accepted_tokens > 0
    assert drafted.steps < plain.steps


async def test_a_constraint_that_takes_too_much_ends_its_own_session(
    vocabulary: Vocabulary, world: Callable[[Callable[[LoopUnderTest, SessionStep], None]], _World]
) -> None:
    here = world(lambda loop, step: None)
    costly, other, free = (
        _session(vocabulary, each, name)
        for each, name in ((COSTLY, "costly"), (LIST, "other"), (None, "free"))
    )
    await here.run(costly, other, free)
    assert set(here.loop.faults) == {"costly"}
    assert "the constraint cannot be followed" in here.loop.faults["costly"]
    assert other.finish_reason is FinishReason.STOP
    assert free.finish_reason is not FinishReason.CANCELLED
