"""A draft model: what it proposes is what its model says, nothing is computed twice, and KV is bounded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.engine_loop import EngineLoop, Running, generate, loaded
from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import Target, UnfitError
from drafter_svc.neural import draft_model
from drafter_svc.neural.draft_model import DraftModel
from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams
from paceline.service.settings import load_settings
from paceline.tree import TokenTree
from paceline.vocabulary import vocab_fingerprint
from tests.replay import Replayed, replay
from tests.tiny import EOS_ID, VOCAB, make_tiny_model

COUNT = 40
GREEDY = SamplingParams(max_tokens=COUNT)
SAMPLINGS = {
    "greedy": GREEDY,
    "sampled": replace(GREEDY, temperature=0.9, seed=7),
    "top_k": replace(GREEDY, temperature=1.3, top_k=20, seed=2**63),
    "top_p and min_p": replace(GREEDY, temperature=0.7, top_p=0.9, min_p=0.02, seed=3),
    "may not end": replace(GREEDY, temperature=2.0, stop_token_ids=frozenset({EOS_ID, 9}), stop_from=30),
}
PROMPTS = [[1, 5, 9], list(range(20, 60)), [7] * 9, [3, 300, 8, 44, 100]]


class CountedEngine(Engine):
    """Notes the segments of each forward."""

    def __init__(self, decoder: Decoder, blocks: int) -> None:
        super().__init__(decoder, blocks)
        self.forwards: list[list[Segment]] = []

    def forward(self, segments: Sequence[Segment], block_tasks: Sequence[BlockTask] = ()) -> Tensor:
        self.forwards.append(list(segments))
        return super().forward(segments, block_tasks)

    @property
    def rows(self) -> int:
        return sum(segment.num_rows for segments in self.forwards for segment in segments)


@pytest.fixture(scope="module")
def target(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def other_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right now and then: the target with other weights in its last layer's MLP."""
    folder = make_tiny_model(tmp_path_factory.mktemp("draft"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model.model.layers[-1].mlp.down_proj.weight.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other(other_folder: Path) -> Iterator[Decoder]:
    with loaded(other_folder) as made:
        yield made


def texts(target: Decoder, prompts: Sequence[list[int]], sampling: SamplingParams) -> list[Replayed]:
    """What the target writes after each prompt, with a seed of each one's own."""
    params = [replace(sampling, seed=sampling.seed + number) for number in range(len(prompts))]
    sessions = [
        Running(list(prompt), len(prompt), each) for prompt, each in zip(prompts, params, strict=True)
    ]
    generate(EngineLoop.of(target, 4 * len(prompts)), sessions, COUNT)
    return [
        Replayed(
            f"s{number}", session.token_ids[: session.prompt_length + COUNT], session.prompt_length, each
        )
        for number, (session, each) in enumerate(zip(sessions, params, strict=True))
    ]


def method(
    decoder: Decoder, blocks: int = 16, vocab_size: int = VOCAB, children: int = 8
) -> tuple[DraftModel, CountedEngine]:
    engine = CountedEngine(decoder, blocks)
    return DraftModel(engine, vocab_size, children=children), engine


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_draft_model_equal_to_the_target_is_always_accepted(
    target: Decoder, sampling: SamplingParams
) -> None:
    trees, chains = (texts(target, PROMPTS, sampling) for _ in range(2))
    replay(method(target)[0], trees, vocab_size=VOCAB)
    for replayed in trees:
        for length, tree in zip(replayed.lengths[:-1], replayed.trees, strict=False):
            # The likeliest path comes first, and goes on with each first child.
            first = next((node for node, parent in enumerate(tree.parents) if parent != node - 1), len(tree))
            assert length > first > 0
    replay(method(target, children=1)[0], chains, vocab_size=VOCAB)
    for replayed in chains:
        # Five of the chain and the target's own; the text's end may come sooner.
        assert replayed.lengths[:-1] == [6] * (len(replayed.lengths) - 1)


def test_after_all_was_accepted_two_tokens_come_first(target: Decoder) -> None:
    """The last drafted token was never computed (EMS-SD)."""
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    drafter, engine = method(target, children=1)
    replay(drafter, [replayed], vocab_size=VOCAB, depth=3)
    roots = [segments[0].run for segments in engine.forwards if len(segments[0].run)]
    assert list(roots[0]) == PROMPTS[0]
    assert [len(run) for run in roots[1:]] == [2] * (len(roots) - 1)
    assert [token for run in roots[1:] for token in run] == [
        token for place, token in enumerate(replayed.text[len(PROMPTS[0]) : -1]) if place % 4 >= 2
    ][: 2 * (len(roots) - 1)]


@pytest.mark.parametrize("blocks", [16, 3])
def test_drafts_are_the_models_own_whatever_was_committed_moved_or_lost(
    target: Decoder, other: Decoder, other_folder: Path, blocks: int
) -> None:
    """With 3 blocks, some of the four sessions give way to the others."""
    sessions = texts(target, PROMPTS, GREEDY)
    drafter, _ = method(other, blocks)
    replay(drafter, sessions, vocab_size=VOCAB)
    model = AutoModelForCausalLM.from_pretrained(other_folder)
    drafted = 0
    for replayed in sessions:
        base = replayed.known
        for length, tree in zip(replayed.lengths, replayed.trees, strict=True):
            _check_log_probs(model, replayed.text[:base], tree)
            base += length
            drafted += len(tree)
    assert drafted
    if blocks == 16:
        # Neither always right nor never: keys of accepted nodes have moved, and others were thrown away.
        assert all(1.05 < replayed.length < 5.5 for replayed in sessions)


def _check_log_probs(model: torch.nn.Module, ids: list[int], tree: TokenTree) -> None:
    paths: list[list[int]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    for path, log_prob in zip(paths, tree.log_probs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + path[:-1]])).logits[0, -1]
        assert log_prob == pytest.approx(float(logits.log_softmax(0)[path[-1]]), abs=1e-3)


def test_no_row_is_computed_twice(target: Decoder, other: Decoder) -> None:
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    drafter, engine = method(other)
    replay(drafter, [replayed], vocab_size=VOCAB)
    runs = sum(len(segments[0].run) for segments in engine.forwards)
    accepted_and_grown = len(replayed.text) - runs
    # Every position of the text was computed once: in a run, or as a node that was accepted.
    assert accepted_and_grown >= sum(length >= 3 for length in replayed.lengths[:-1]) > 0
    assert all(
        segment.num_rows <= len(segment.run) + 8 for segments in engine.forwards for segment in segments
    )


def test_sessions_share_forwards_and_get_the_trees_that_they_get_alone(
    target: Decoder, other: Decoder
) -> None:
    together, alone = (texts(target, PROMPTS, SAMPLINGS["sampled"]) for _ in range(2))
    drafter, engine = method(other)
    replay(drafter, together, vocab_size=VOCAB)
    steps = max(len(replayed.lengths) for replayed in together)
    assert len(engine.forwards) <= 5 * steps
    for one, same in zip(alone, together, strict=True):
        replay(method(other)[0], [one], vocab_size=VOCAB)
        assert [tree.tokens for tree in one.trees] == [tree.tokens for tree in same.trees]
        assert one.lengths == same.lengths


def test_a_long_text_is_read_in_parts_beside_the_trees_of_others(
    target: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(draft_model.TEXT_ROWS, "cpu", 100)
    long, short = texts(target, [[number % 400 + 50 for number in range(330)], PROMPTS[0]], GREEDY)
    drafter, engine = method(target, children=1)
    replay(drafter, [long, short], vocab_size=VOCAB, depth=4)
    assert max(sum(segment.num_rows for segment in segments) for segments in engine.forwards) <= 100 + 64
    empty = [len(tree) == 0 for tree in long.trees]
    # 330 rows, of which the last 64 come with the tree's first level.
    assert empty == [True] * 2 + [False] * (len(empty) - 2)
    assert short.lengths[0] == 5
    assert long.lengths[2] == 5


def test_a_text_that_begins_like_another_is_computed_from_where_they_part(target: Decoder) -> None:
    beginning = [number % 400 + 50 for number in range(280)]
    first, second = texts(target, [[*beginning, 3, 4], [*beginning, 5]], GREEDY)
    drafter, engine = method(target, children=1)
    replay(drafter, [first], vocab_size=VOCAB)
    before = engine.rows
    replay(drafter, [second], vocab_size=VOCAB)
    assert second.lengths[0] == 6
    assert engine.rows - before < before - 250


def test_a_text_that_went_on_before_its_batch_began_is_drafted_for_where_it_was_asked(
    target: Decoder,
) -> None:
    """Ids behind the ask's are there, and another session has left the keys of all of them."""
    text = texts(target, PROMPTS[:1], GREEDY)[0].text
    drafter, engine = method(target, children=1)
    drafter.draft([Replayed("before", text, len(text)).ask(4, 4)])
    drafter.forget("before")
    ask = replace(Replayed("after", text, len(text)).ask(4, 4), length=len(text) - 10)
    before = engine.rows
    [tree] = drafter.draft([ask])
    assert list(tree.tokens) == text[-10:-6]
    # One row of the text, and one for each node but the deepest.
    assert engine.rows - before == 4


def test_a_larger_tree_goes_on_below_the_first_and_serves_the_next_text_too(target: Decoder) -> None:
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    drafter, engine = method(target, children=1)
    [first] = drafter.draft([replayed.ask(9, 3)])
    before = len(engine.forwards)
    [larger] = drafter.draft([replayed.ask(18, 6, first)])
    assert all(not segment.run for segments in engine.forwards[before:] for segment in segments)
    assert max(larger.depths()) == 6
    replayed.commit(drafter, first, 9)
    before = len(engine.forwards)
    [following] = drafter.draft([replayed.ask(9, 3)])
    # The bonus token stands in the larger tree: its children are known.
    assert all(not segment.run for segments in engine.forwards[before:] for segment in segments)
    replayed.commit(drafter, following, 9)
    assert replayed.lengths == [4, 4]


def test_a_session_at_the_end_of_the_models_context_gets_no_deeper_tree(tmp_path: Path) -> None:
    with loaded(make_tiny_model(tmp_path, context=32)) as decoder:
        drafter, _ = method(decoder, children=1)
        for length, deepest in ((30, 3), (32, 1), (33, 0), (60, 0)):
            [tree] = drafter.draft([Replayed(f"{length}", [5] * length, length).ask(9, 8)])
            assert max(tree.depths(), default=0) == deepest


def test_a_model_with_more_or_fewer_ids_than_the_target_drafts_the_targets(target: Decoder) -> None:
    sampling = replace(GREEDY, stop_token_ids=frozenset({9, VOCAB + 7}), stop_from=1000)
    replayed = Replayed("s", PROMPTS[0], len(PROMPTS[0]), sampling)
    for vocab_size in (VOCAB - 100, VOCAB + 8):
        drafter, _ = method(target, vocab_size=vocab_size)
        [tree] = drafter.draft([replayed.ask(31, 4)])
        assert len(tree) == 31
        assert max(tree.tokens) < min(vocab_size, VOCAB)
        assert 9 not in tree.tokens


def test_a_session_whose_forward_fails_is_computed_anew(
    target: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    drafter, _ = method(target, children=1)
    with monkeypatch.context() as patched:
        patched.setattr(target, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drafter.draft([replayed.ask(9, 4)])
    [tree] = drafter.draft([replayed.ask(9, 4)])
    replayed.commit(drafter, tree, 9)
    assert replayed.lengths == [5]


def test_the_settings_name_model_device_and_memory(tiny_model: Path, target: Decoder) -> None:
    settings = load_settings(DrafterSettings, draft_model=str(tiny_model), device="cpu", memory_bytes=1 << 24)
    made = draft_model.factory(settings)
    vocabulary = AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    assert made.needs.vocab_fingerprint == vocab_fingerprint(vocabulary)
    served = Target("tiny", made.needs.vocab_fingerprint, VOCAB)
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    replay(made.create(served), [replayed], vocab_size=VOCAB)
    assert replayed.length > 2


def test_a_model_that_was_loaded_at_the_start_is_not_read_for_a_target(
    tiny_model: Path, target: Decoder, tmp_path: Path
) -> None:
    """The first session would wait for it."""
    own = tmp_path / "model"
    shutil.copytree(tiny_model, own)
    settings = load_settings(DrafterSettings, draft_model=str(own), device="cpu", memory_bytes=1 << 24)
    made = draft_model.factory(settings)
    made.load()
    shutil.rmtree(own)
    [replayed] = texts(target, PROMPTS[:1], GREEDY)
    replay(made.create(Target("tiny", made.needs.vocab_fingerprint, VOCAB)), [replayed], vocab_size=VOCAB)
    assert replayed.length > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_model": ""}, "--draft-model"),
        ({"draft_model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"device": "cuda:9"}, "cuda:9"),
    ],
)
def test_settings_that_cannot_work_are_named(tiny_model: Path, changes: dict[str, str], message: str) -> None:
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("this machine may have that device")
    settings = load_settings(DrafterSettings, draft_model=str(tiny_model), device="cpu").model_copy(
        update=changes
    )
    with pytest.raises(UnfitError, match=message):
        draft_model.factory(settings)


def test_too_little_memory_is_named(tiny_model: Path) -> None:
    settings = load_settings(DrafterSettings, draft_model=str(tiny_model), device="cpu").model_copy(
        update={"memory_bytes": 9}
    )
    with pytest.raises(UnfitError, match="--memory-bytes is 9"):
        draft_model.factory(settings).create(Target("tiny", "", VOCAB))
