"""A trained head: it drafts from the states that travel, as it was trained to, within bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import Target, UnfitError
from drafter_svc.neural import eagle
from drafter_svc.neural.eagle import Eagle
from paceline.engine.blocks import BlockTask
from paceline.engine.fingerprint import weights_fingerprint
from paceline.engine.rows import Segment
from paceline.features import FeatureGrant
from paceline.heads import store
from paceline.heads.eagle import EagleConfig, EagleHead
from paceline.heads.paged import PagedHead
from paceline.sampling import SamplingParams
from paceline.service.settings import load_settings
from paceline.training.unroll import unrolled
from paceline.tree import TokenTree
from tests import heads
from tests.heads import GRANT, VOCAB
from tests.replay import Replayed, replay
from tests.tiny import make_tiny_model

LENGTH = 60
SAMPLED = SamplingParams(max_tokens=1000, temperature=0.8, top_p=0.95, seed=5)


class CountedHead(PagedHead):
    """Notes the rows of each pass, by session."""

    def __init__(self, head: EagleHead, embedding: Tensor, *, blocks: int) -> None:
        super().__init__(head, embedding, blocks=blocks)
        self.passes: list[list[int]] = []

    def forward(self, segments: Sequence[Segment], states: Tensor, tasks: Sequence[BlockTask]) -> Tensor:
        self.passes.append([segment.num_rows for segment in segments])
        return super().forward(segments, states, tasks)


def method(
    head: EagleHead | None = None,
    *,
    blocks: int = 32,
    children: int = 4,
    idle_batches: int = 64,
) -> tuple[Eagle, CountedHead]:
    paged = CountedHead(head or heads.trained_head(), heads.embedding(), blocks=blocks)
    return Eagle(paged, GRANT, children=children, width=4, idle_batches=idle_batches), paged


def sessions(
    count: int, *, known: int = 9, length: int = LENGTH, sampling: SamplingParams | None = None
) -> list[Replayed]:
    made = []
    for number in range(count):
        ids = heads.text(10_000 + number, length)
        params = sampling or SamplingParams(max_tokens=1000)
        made.append(Replayed(f"s{number}", ids, known, params, heads.foretelling(ids)))
    return made


def mean_length(replayed: Sequence[Replayed]) -> float:
    lengths = [length for each in replayed for length in each.lengths]
    return sum(lengths) / len(lengths)


def test_it_drafts_what_the_states_foretell() -> None:
    told = sessions(4)
    replay(method()[0], told, vocab_size=VOCAB)
    # Three tokens are foretold; the fourth is the target's own.
    assert mean_length(told) > 3


@pytest.mark.parametrize("wrong", ["zeroed", "another session's"])
def test_without_its_own_states_it_drafts_next_to_nothing(wrong: str) -> None:
    told = sessions(4)
    for number, each in enumerate(told):
        assert each.states is not None
        each.states = (
            torch.zeros_like(each.states) if wrong == "zeroed" else heads.foretelling(told[number - 1].text)
        )
    replay(method()[0], told, vocab_size=VOCAB)
    # Trees of 15 of 24 tokens are right now and then by chance; with its states it had three and more.
    assert 1 <= mean_length(told) < 1.6


def test_untrained_it_drafts_next_to_nothing() -> None:
    told = sessions(4)
    replay(method(heads.untrained_head())[0], told, vocab_size=VOCAB, nodes=3)
    assert mean_length(told) < 1.2


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
def test_trees_are_those_of_the_head_as_it_was_trained_unrolled(sampling: SamplingParams | None) -> None:
    """Keys of earlier steps, of other sessions and of nodes that were not committed leave no trace."""
    told = sessions(3, sampling=sampling)
    replay(method()[0], told, vocab_size=VOCAB)
    head = heads.trained_head()
    nodes = 0
    for each in told:
        base = each.known
        for length, tree in zip(each.lengths, each.trees, strict=True):
            if sampling is None:
                _check_log_probs(head, each, base, tree)
            base += length
            nodes += len(tree)
    assert nodes > 100


def _check_log_probs(head: EagleHead, told: Replayed, base: int, tree: TokenTree) -> None:
    assert told.states is not None
    columns = [GRANT.layers.index(layer) for layer in heads.LAYERS]
    paths: list[list[int]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    for path, log_prob in zip(paths, tree.log_probs, strict=True):
        ids = told.text[:base] + path[:-1]
        embedded = heads.embedding()[ids[1:]][None]
        states = torch.zeros(1, len(ids) - 1, len(columns), heads.WIDTH)
        states[0, : base - 1] = told.states[: base - 1, columns]
        *_, last = unrolled(head, embedded, states, len(path))
        log_probs = head.logits(last[0, -1]).log_softmax(-1)
        assert log_prob == pytest.approx(float(log_probs[head.tokens == path[-1]]), abs=1e-3)


def test_at_a_temperature_it_draws_with_the_sessions_noise() -> None:
    """A text that was drawn from the head itself is always drafted."""
    told = sessions(1, sampling=SAMPLED)[0]
    drafter, _ = method(children=1)
    drafter.attach(told.session)
    told.tell_states(drafter)
    [tree] = drafter.draft([told.ask(5, 5)])
    assert len(tree) == 5
    # The same once more, from scratch; and other tokens with another seed.
    for seed, same in ((SAMPLED.seed, True), (SAMPLED.seed + 1, False)):
        other = sessions(1, sampling=replace(SAMPLED, seed=seed))[0]
        anew, _ = method(children=1)
        anew.attach(other.session)
        other.tell_states(anew)
        [again] = anew.draft([other.ask(5, 5)])
        assert (again.tokens == tree.tokens) == same


def test_sessions_share_passes_and_get_the_trees_that_they_get_alone() -> None:
    together, alone = sessions(8), sessions(8)
    drafter, head = method()
    replay(drafter, together, vocab_size=VOCAB)
    assert max(len(rows) for rows in head.passes) == 8
    # A pass of what states came, and one of each level but the first.
    assert len(head.passes) <= 5 * max(len(each.lengths) for each in together)
    for one, same in zip(alone, together, strict=True):
        replay(method()[0], [one], vocab_size=VOCAB)
        assert one.lengths == same.lengths
        assert [tree.tokens for tree in one.trees] == [tree.tokens for tree in same.trees]


def test_states_of_a_long_prompt_are_taken_in_as_they_come() -> None:
    [told] = sessions(1, known=700, length=740)
    drafter, head = method()
    drafter.attach(told.session)
    told.tell_states(drafter, most=100)
    # Most of them are computed already: what waits is bounded.
    assert sum(map(sum, head.passes)) >= 699 - 256 - 100
    replay(drafter, [told], vocab_size=VOCAB)
    [same] = sessions(1, known=700, length=740)
    at_once, _ = method()
    at_once.attach(same.session)
    same.tell_states(at_once, most=1000)
    replay(at_once, [same], vocab_size=VOCAB)
    assert [tree.tokens for tree in told.trees] == [tree.tokens for tree in same.trees]


def test_a_text_that_begins_like_another_needs_states_from_where_they_part() -> None:
    first, second = sessions(2, known=400, length=440)
    second = Replayed("second", first.text[:390] + second.text[390:], 400, states=None)
    second.states = heads.foretelling(second.text)
    drafter, _ = method()
    replay(drafter, [first], vocab_size=VOCAB)
    drafter.attach(second.session)
    lacks = drafter.lacks_from(second.session)
    assert lacks is not None
    assert 380 <= lacks <= 390
    replay(drafter, [second], vocab_size=VOCAB)
    assert second.length > 2.5


def test_a_text_with_another_first_token_shares_nothing() -> None:
    """A row depends on two tokens, the first one too."""
    [first] = sessions(1, known=400, length=410)
    other = Replayed("other", [first.text[0] ^ 1, *first.text[1:]], 400)
    drafter, _ = method()
    replay(drafter, [first], vocab_size=VOCAB)
    drafter.attach(other.session)
    assert drafter.lacks_from(other.session) == 0


def test_a_session_without_room_waits_for_it_and_is_told_all_again() -> None:
    first, second = sessions(2, known=150, length=160)
    drafter, _ = method(blocks=3)
    for each in (first, second):
        drafter.attach(each.session)
        each.tell_states(drafter)
    trees = drafter.draft([each.ask(9, 3) for each in (first, second)])
    assert [len(tree) for tree in trees] == [9, 0]
    assert drafter.lacks_from(second.session) is None
    for each, tree in zip((first, second), trees, strict=True):
        each.commit(drafter, tree, 9)
    drafter.forget("s0")
    # Room is looked for with each verdict.
    roomy, _ = method(blocks=16)
    roomy.attach(second.session)
    assert roomy.lacks_from(second.session) == 0


def test_a_session_that_lost_its_keys_begins_anew_once_there_is_room() -> None:
    short, long = sessions(1, known=20)[0], sessions(2, known=1200, length=1230)[1]
    drafter, _ = method(blocks=10, idle_batches=0)
    drafter.attach(short.session)
    short.tell_states(drafter)
    [tree] = drafter.draft([short.ask(9, 3)])
    assert len(tree) == 9
    # A batch without it, and it may lose its keys. The other one takes all there are.
    drafter.draft([])
    drafter.attach(long.session)
    for _ in range(3):
        long.tell_states(drafter)
        [tree] = drafter.draft([long.ask(9, 3)])
        long.commit(drafter, tree, 9)
    assert drafter.lacks_from(short.session) is None
    short.commit(drafter, TokenTree(), 9)
    assert drafter.lacks_from(short.session) is None
    drafter.forget(long.name)
    short.commit(drafter, TokenTree(), 9)
    assert drafter.lacks_from(short.session) is not None
    short.tell_states(drafter)
    [tree] = drafter.draft([short.ask(9, 3)])
    assert len(tree) == 9


def test_a_larger_tree_goes_on_below_the_first() -> None:
    [told] = sessions(1)
    drafter, head = method()
    drafter.attach(told.session)
    told.tell_states(drafter)
    [first] = drafter.draft([told.ask(9, 3)])
    before = len(head.passes)
    [larger] = drafter.draft([told.ask(18, 6, first)])
    assert len(larger) == 18
    assert len(head.passes) > before
    assert all(rows <= 4 for rows, *_ in head.passes[before:])
    told.commit(drafter, larger, 18)
    told.tell_states(drafter)
    [following] = drafter.draft([told.ask(9, 3)])
    assert len(following) == 9


def test_a_grant_that_the_head_cannot_read_is_refused() -> None:
    paged = PagedHead(heads.trained_head(), heads.embedding(), blocks=2)
    for grant in (FeatureGrant((1, 2), heads.WIDTH, "float32"), FeatureGrant(GRANT.layers, 64, "float32")):
        with pytest.raises(UnfitError, match=r"the head reads layers \[1, 2, 4\] of width 32"):
            Eagle(paged, grant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_travel_in_the_targets_type(dtype: torch.dtype) -> None:
    [told] = sessions(1)
    assert told.states is not None
    paged = PagedHead(heads.trained_head(), heads.embedding(), blocks=4)
    drafter = Eagle(paged, replace(GRANT, dtype=str(dtype).removeprefix("torch.")))
    drafter.attach(told.session)
    states = told.states[: told.known - 1].to(dtype).contiguous().view(torch.uint8)
    drafter.take_states(told.session, 0, memoryview(states.numpy().tobytes()))
    [tree] = drafter.draft([told.ask(15, 5)])
    told.commit(drafter, tree, 15)
    assert told.lengths[0] > 2


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def heads_folder(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of the tiny model's shape, beside files that are none."""
    folder = tmp_path_factory.mktemp("heads")
    config = EagleConfig((0, 1), 64, 128, heads=4, kv_heads=2, head_dim=16, draft_vocab=100, vocab=512)
    fingerprint = weights_fingerprint(target_folder)
    store.save(EagleHead(config), folder / "b.safetensors", weights_fingerprint=fingerprint, card={})
    (folder / "a.safetensors").write_bytes(b"no head")
    return folder


def test_the_settings_name_heads_target_and_memory(heads_folder: Path, target_folder: Path) -> None:
    settings = load_settings(
        DrafterSettings, heads=heads_folder, model=str(target_folder), device="cpu", memory_bytes=1 << 22
    )
    made = eagle.factory(settings)
    fingerprint = weights_fingerprint(target_folder)
    [want] = [each for each in made.needs.features if each.weights_fingerprint == fingerprint]
    assert want.layers == (0, 1)
    assert str(heads_folder / "b.safetensors") in made.weights
    grant = FeatureGrant((0, 1), 64, "float32")
    drafter = made.create(Target("tiny", "", 512, fingerprint, grant))
    told = Replayed("s", [5] * 20, 20, states=torch.zeros(20, 2, 64))
    drafter.attach(told.session)
    told.tell_states(drafter)
    [tree] = drafter.draft([told.ask(9, 3)])
    assert len(tree) == 9
    with pytest.raises(UnfitError, match="no head of the weights abc is here"):
        made.create(Target("tiny", "", 512, "abc", grant))


def test_what_was_loaded_at_the_start_is_not_read_for_a_target(
    heads_folder: Path, target_folder: Path, tmp_path: Path
) -> None:
    """The first session would wait for it."""
    own_heads, own_target = tmp_path / "heads", tmp_path / "target"
    shutil.copytree(heads_folder, own_heads)
    shutil.copytree(target_folder, own_target)
    settings = load_settings(DrafterSettings, heads=own_heads, model=str(own_target), device="cpu")
    made = eagle.factory(settings)
    made.load()
    target = Target("tiny", "", 512, weights_fingerprint(own_target), FeatureGrant((0, 1), 64, "float32"))
    shutil.rmtree(own_heads)
    shutil.rmtree(own_target)
    told = Replayed("s", [5] * 20, 20, states=torch.zeros(20, 2, 64))
    drafter = made.create(target)
    drafter.attach(told.session)
    told.tell_states(drafter)
    assert len(drafter.draft([told.ask(9, 3)])[0]) == 9


def test_states_that_wait_are_computed_where_all_of_them_take_too_much() -> None:
    # For less than three sessions' eight positions.
    room = 16 * GRANT.position_bytes
    paged = CountedHead(heads.trained_head(), heads.embedding(), blocks=32)
    drafter = Eagle(paged, GRANT, waiting_bytes=room)
    many = sessions(6)
    for told in many:
        drafter.attach(told.session)
        told.tell_states(drafter, 5)
    assert len(paged.passes) >= 2, "some were computed before any tree was asked for"
    trees = drafter.draft([told.ask(15, 5) for told in many])
    assert all(len(tree) == 15 for tree in trees)
    # What waits for a session that is over takes no room.
    for told in many:
        drafter.forget(told.name)
    computed = len(paged.passes)
    for _ in range(3):
        for told in sessions(2):
            drafter.attach(told.session)
            told.tell_states(drafter)
        for told in sessions(2):
            drafter.forget(told.name)
    assert len(paged.passes) == computed


def test_weights_other_than_the_targets_are_refused(
    heads_folder: Path, target_folder: Path, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    settings = load_settings(DrafterSettings, heads=heads_folder, model=str(other), device="cpu")
    target = Target("tiny", "", 512, weights_fingerprint(target_folder), FeatureGrant((0, 1), 64, "float32"))
    with pytest.raises(UnfitError, match="the target's are"):
        eagle.factory(settings).create(target)


def test_a_pod_without_the_targets_weights_is_told_what_it_lacks(heads_folder: Path) -> None:
    with pytest.raises(UnfitError, match="--model"):
        eagle.factory(load_settings(DrafterSettings, heads=heads_folder, device="cpu"))
