"""States beside the KV are the model's own hidden states, however a text's keys came to where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.engine_loop import EngineLoop, Running, loaded
from bench.families import make_family_model
from bench.tiny_sizes import VOCAB
from paceline.engine.blocks import BlockTask, OutOfBlocksError
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.layers import DecoderLayers
from paceline.engine.loading import ModelError
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.engine.states import StatePool
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree
from tests.random_trees import tree_around

CPU = torch.device("cpu")
SAMPLING = SamplingParams(max_tokens=1)
# Where texts part from the first one: within a block that has been full, behind it, and at once.
PARTS = (BLOCK_SIZE // 2, BLOCK_SIZE + 30, 0)
LENGTH = 2 * BLOCK_SIZE + 9
# Less than three texts need.
BLOCKS = 7


def _own_states(folder: Path, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """transformers' hidden states [positions, layers + 1, width], the last before the final norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last: list[Tensor] = []
    layers = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
    layers[-1].register_forward_hook(lambda module, arguments, out: last.append(out))
    states = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(torch.tensor([text]), output_hidden_states=True).hidden_states
            states.append(torch.stack([*hidden[:-1], last.pop()], dim=2)[0])
    return states


def _row_by_row(decoder: Decoder, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """As plain decoding keeps them: a row at a time with nothing beside it."""
    states = []
    for text in texts:
        engine = Engine(decoder, 3, range(decoder.layers.count + 1))
        for position, token in enumerate(text):
            engine.forward([Segment([token], position, (0, 1, 2))])
        states.append(engine.read_states((0, 1, 2), 0, len(text), engine.kept_layers))
    return states


@dataclass(frozen=True, repr=False)
class Case:
    decoder: Decoder
    texts: list[list[int]]
    # [positions, layers + 1, width] of each text.
    expected: list[Tensor]
    # Bits of bfloat16 are compared.
    tolerance: float

    @property
    def every_layer(self) -> range:
        return range(self.decoder.layers.count + 1)


@pytest.fixture(
    scope="module",
    params=[
        # Fused, by transformers' modules, and by FlexAttention as on a GPU.
        ("llama_mha", torch.float32, "cpu"),
        ("llama_mha", torch.bfloat16, "cpu"),
        ("gemma3", torch.float32, "cpu"),
        ("gemma3", torch.bfloat16, "cpu"),
        ("gpt2", torch.float32, "cpu"),
        ("llama", torch.float32, "cuda"),
        pytest.param(
            ("llama", torch.float32, "gpu"),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ),
    ],
    ids=lambda param: f"{param[0]}-{str(param[1]).removeprefix('torch.')}-{param[2]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    family, dtype, backend = request.param
    folder = make_family_model(tmp_path_factory.mktemp(family), family)
    random = Random(7)
    first = random.choices(range(VOCAB), k=LENGTH)
    texts = [first, *([*first[:part], *random.choices(range(VOCAB), k=LENGTH - part)] for part in PARTS)]
    place = {"device": "cuda"} if backend == "gpu" else {"backend": backend}
    with loaded(folder, dtype, **place) as decoder:
        if dtype is torch.float32:
            yield Case(decoder, texts, _own_states(folder, texts), 1e-4)
        else:
            assert decoder.exact
            yield Case(decoder, texts, _row_by_row(decoder, texts), 0.0)


class Serving:
    """An engine with too few blocks for its sessions, which begin, go on and end in any order."""

    def __init__(self, case: Case, random: Random) -> None:
        self.case, self.random = case, random
        self.loop = EngineLoop.of(case.decoder, BLOCKS, case.every_layer)
        self.sessions: list[tuple[Running, Tensor]] = []

    def begin(self) -> None:
        number = self.random.randrange(len(self.case.texts))
        tokens = self.case.texts[number][: self.random.randint(2, LENGTH)]
        self.sessions.append((Running(tokens, 0, SAMPLING), self.case.expected[number]))

    def give_up(self, session: Running) -> None:
        """As at a session's end, and where another one needs its blocks: its text stays while it may."""
        self.loop.allocator.keep(session.blocks, session.token_ids, session.num_computed)
        self.loop.allocator.release(session.blocks)
        session.num_computed = 0

    def step(self) -> None:
        """Some sessions' rows: parts of prompts, single rows, trees of which a path is accepted."""
        paths: list[tuple[Running, Segment, list[int]]] = []
        for session, _ in self.random.sample(self.sessions, self.random.randint(0, len(self.sessions))):
            if not session.blocks:
                session.num_computed = self.loop.allocator.adopt(session.blocks, session.token_ids)
            done, length = session.num_computed, len(session.token_ids)
            if done == length:
                continue
            stop = min(length, done + self.random.choice([1, 1, 13, 40, 130]))
            right = session.token_ids[stop : stop + self.random.randint(0, 5)]
            tree, path = tree_around(self.random, right, vocab=VOCAB)
            try:
                paths.append((session, self.loop.segment(session, tree, stop), path))
            except OutOfBlocksError:
                self.give_up(session)
        if not paths:
            return
        self.loop.forward([segment for _, segment, _ in paths])
        self.loop.engine.accept((segment, path) for _, segment, path in paths)
        for session, segment, path in paths:
            session.num_computed += len(segment.run) + len(path)
            full = session.num_computed // BLOCK_SIZE * BLOCK_SIZE
            self.loop.allocator.keep(session.blocks, session.token_ids, full)

    def check(self) -> None:
        """All states that sessions have, and any part of them."""
        layers = list(self.case.every_layer)
        for session, expected in self.sessions:
            self._check(session, expected, 0, session.num_computed, layers)
            start = self.random.randint(0, session.num_computed)
            count = self.random.randint(0, session.num_computed - start)
            some = self.random.sample(layers, self.random.randint(0, len(layers)))
            self._check(session, expected, start, count, some)

    def _check(self, session: Running, expected: Tensor, start: int, count: int, layers: list[int]) -> None:
        got = self.loop.engine.read_states(session.blocks, start, count, layers)
        assert got.dtype == self.case.decoder.dtype
        assert got.is_contiguous()
        wanted = expected[start : start + count, layers]
        assert got.shape == wanted.shape
        tolerance = self.case.tolerance
        torch.testing.assert_close(got, wanted, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


@given(random=st.randoms(use_true_random=True))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_states_are_the_models_own(case: Case, random: Random) -> None:
    """In any batch: prompts in parts, trees, prefix hits with copies, blocks taken away and given back."""
    serving = Serving(case, random)
    for _ in range(random.randint(4, 14)):
        if len(serving.sessions) < 3 and random.random() < 0.6:
            serving.begin()
        serving.step()
        serving.check()
        for pair in list(serving.sessions):
            if random.random() < 0.2:
                serving.give_up(pair[0])
                if random.random() < 0.5:
                    serving.sessions.remove(pair)


def test_a_copied_block_can_be_read_before_it_is_copied(case: Case) -> None:
    """A session that found a text has its states at once, not only when the next step has copied them."""
    loop = EngineLoop.of(case.decoder, BLOCKS, case.every_layer)
    first = Running(case.texts[0], 0, SAMPLING)
    loop.forward([loop.segment(first, TokenTree(), LENGTH)])
    loop.allocator.keep(first.blocks, first.token_ids, LENGTH)
    second = Running(case.texts[1], 0, SAMPLING)
    second.num_computed = loop.allocator.adopt(second.blocks, second.token_ids)
    assert second.num_computed == PARTS[0]
    loop.engine.do_first(loop.allocator.take_tasks())
    # The space of the source is needed at once.
    loop.allocator.release(first.blocks)
    got = loop.engine.read_states(second.blocks, 0, second.num_computed, case.every_layer)
    wanted = case.expected[1][: second.num_computed]
    torch.testing.assert_close(
        got, wanted, atol=case.tolerance * float(wanted.abs().max()), rtol=case.tolerance
    )


def test_a_tree_that_grows_has_the_logits_and_states_of_the_tree_at_once(case: Case) -> None:
    """On every backend; where the engine is exact, to the bit (test_exact)."""
    text, root = case.texts[0], BLOCK_SIZE - 3
    parents = [-1, -1, 0, 1, 1, 2, 4, 6, 5]
    tokens = text[: len(parents)]
    at_once, grown = (Engine(case.decoder, 2, case.every_layer) for _ in range(2))
    for engine in (at_once, grown):
        engine.forward([Segment(text[:root], 0, (0, 1), wants_logits=False)])
    expected = at_once.forward([Segment([text[root]], root, (0, 1), tokens, parents)])
    logits = [grown.forward([Segment([text[root]], root, (0, 1))])]
    for done, stop in pairwise((0, 2, 5, 6, len(parents))):
        level = Segment([], root + 1, (0, 1), tokens[:stop], parents[:stop], computed_nodes=done)
        logits.append(grown.forward([level]))
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.cat(logits), expected, atol=case.tolerance * scale, rtol=case.tolerance)
    got, wanted = (
        engine.read_states((0, 1), 0, root + 1 + len(parents), case.every_layer)
        for engine in (grown, at_once)
    )
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got, wanted, atol=case.tolerance * scale, rtol=case.tolerance)


def test_a_root_that_is_no_row_cannot_be_drawn_from(case: Case) -> None:
    tree = Segment([], 3, (0,), [5, 6], [-1, 0], computed_nodes=1)
    with pytest.raises(ValueError, match="without its root's row"):
        Engine(case.decoder, 2).step(StepInput([SessionRows(tree, SAMPLING)]))


def test_kept_states_change_no_logit(case: Case) -> None:
    text = case.texts[0][:40]
    segments = [
        Segment(text[:30], 0, (0,), text[30:], [-1, 0, 1, -1, *range(3, 9)]),
        Segment(text[5:9], 0, (1,)),
    ]
    plain = Engine(case.decoder, 2)
    for layers in ([0], [1], [case.decoder.layers.count], case.every_layer):
        engine = Engine(case.decoder, 2, layers)
        assert torch.equal(engine.forward(segments), plain.forward(segments))
        assert engine.kept_layers == tuple(layers)


def test_what_is_not_kept_cannot_be_read(case: Case) -> None:
    engine = Engine(case.decoder, 2, [1])
    assert engine.state_width == case.expected[0].shape[-1]
    with pytest.raises(ValueError, match=r"states of layers \[0\] were asked for, \[1\] are kept"):
        engine.read_states([0], 0, 1, [0])
    for start, count in ((-1, 1), (0, BLOCK_SIZE + 1), (0, -1), (2 * BLOCK_SIZE, 1)):
        with pytest.raises(ValueError, match="are not in 1 blocks"):
            engine.read_states([0], start, count, [1])
    with pytest.raises(ValueError, match="no states are kept"):
        Engine(case.decoder, 2).read_states([0], 0, 1, [1])


def test_layers_that_a_model_lacks_are_refused(case: Case) -> None:
    count = case.decoder.layers.count
    for number in (-1, count + 1):
        with pytest.raises(ModelError, match=rf"layer {number} cannot be kept: .*0 .* to {count}"):
            Engine(case.decoder, 2, [1, number])
    assert Engine(case.decoder, 2, [2, 0, 2]).kept_layers == (0, 2)


def test_layers_are_named_by_numbers_or_by_who_reads_them() -> None:
    layers = DecoderLayers([torch.nn.Identity() for _ in range(30)], 8)
    assert layers.named("eagle") == (2, 15, 27)
    assert layers.named("30, 0,4") == (0, 4, 30)
    with pytest.raises(ModelError, match="numbers with commas, or eagle; got two"):
        layers.named("two")
    with pytest.raises(ModelError, match="this model has 6: give numbers"):
        DecoderLayers([torch.nn.Identity() for _ in range(6)], 8).named("eagle")


@given(data=st.data())
def test_moves_and_copies_touch_nothing_else(data: st.DataObject) -> None:
    pool = StatePool((0, 4), blocks=4, block_size=4, width=3, dtype=torch.float16, device=CPU)
    pool.states.copy_(torch.arange(pool.states.numel()).view(pool.states.shape))
    before = pool.states.clone().flatten(1, 2)
    targets = data.draw(st.lists(st.integers(0, 15), unique=True))
    sources = [data.draw(st.integers(0, 15)) for _ in targets]
    pool.move(torch.tensor(sources, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64))
    moved = dict(zip(targets, sources, strict=True))
    expected = before[:, [moved.get(slot, slot) for slot in range(16)]]
    assert torch.equal(pool.states.flatten(1, 2), expected)
    pool.prepare([BlockTask(2), BlockTask(1, source=3)])
    blocks = expected.unflatten(1, (4, 4))
    assert torch.equal(pool.states, blocks[:, [0, 3, 2, 3]])
