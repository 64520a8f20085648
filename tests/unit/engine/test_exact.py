"""Exact mode: a row's bits depend on its token, position and ancestors, on nothing else in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.engine_loop import EngineLoop, Running, loaded
from bench.families import make_family_model
from bench.tiny_sizes import VOCAB
from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine
from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree
from tests.kv_rows import key_rows, value_rows
from tests.random_trees import tree_around
from tests.spoiled import spoil

# Length of each text; two of them cross the edge of a block, one of those by its prompt alone.
LENGTHS = (20, 60, BLOCK_SIZE + 12, BLOCK_SIZE + 40)
PROMPTS = (1, 30, BLOCK_SIZE - 10, BLOCK_SIZE + 20)
SAMPLING = SamplingParams(max_tokens=1)


@dataclass(frozen=True, repr=False)
class Alone:
    """A text fed row by row with nothing beside it: what every other way must equal."""

    tokens: list[int]
    prompt: int
    logits: Tensor  # [positions, vocab]
    keys: Tensor  # [layers, kv_heads, positions, head_dim]
    values: Tensor
    states: Tensor  # [positions, layers + 1, width]


@dataclass(frozen=True, repr=False)
class Case:
    decoder: Decoder
    texts: list[Alone]


def _kv(pool: KVPool, session: Running) -> tuple[Tensor, Tensor]:
    """Keys and values [layers, kv_heads, positions, head_dim]."""
    positions = torch.arange(session.num_computed)
    blocks = torch.tensor(session.blocks)[positions // BLOCK_SIZE]
    offsets = positions % BLOCK_SIZE
    return key_rows(pool)[:, :, blocks, offsets], value_rows(pool)[:, :, blocks, offsets]


def _states(engine: Engine, session: Running) -> Tensor:
    return engine.read_states(session.blocks, 0, session.num_computed, engine.kept_layers)


def _alone(decoder: Decoder, tokens: list[int], prompt: int) -> Alone:
    """Logits and KV are those of an engine that keeps no states."""
    plain, keeping = EngineLoop.of(decoder, 2), EngineLoop.of(decoder, 2, _every_layer(decoder))
    session = Running(tokens, 0, SAMPLING, [0, 1], len(tokens))
    logits: list[Tensor] = []
    for position, token in enumerate(tokens):
        segment = Segment(run=[token], start=position, blocks=session.blocks)
        logits.append(plain.forward([segment]))
        keeping.forward([segment])
    states = _states(keeping.engine, session)
    return Alone(tokens, prompt, torch.cat(logits), *_kv(plain.engine.pool, session), states)


def _every_layer(decoder: Decoder) -> range:
    return range(decoder.layers.count + 1)


@pytest.fixture(
    scope="module",
    params=[
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        # Served by the fused forward, as its heads are wide enough.
        ("llama_mha", torch.float32),
        ("llama_mha", torch.bfloat16),
        ("gemma3", torch.bfloat16),
        ("llama", torch.float16),
    ],
    ids=lambda param: f"{param[0]}-{str(param[1]).removeprefix('torch.')}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    family, dtype = request.param
    folder = make_family_model(tmp_path_factory.mktemp(family), family)
    generator = torch.Generator().manual_seed(5)
    with loaded(folder, dtype) as decoder:
        assert decoder.exact
        texts = [
            _alone(decoder, torch.randint(VOCAB, (length,), generator=generator).tolist(), prompt)
            for length, prompt in zip(LENGTHS, PROMPTS, strict=True)
        ]
        yield Case(decoder, texts)


def _assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected), f"{what}: {(got != expected).sum()} of {got.numel()} differ"


# One seed for all that is drawn on the way: thousands of draws of its own cost Hypothesis more than the test.
@given(
    random=st.randoms(use_true_random=True),
    scattered=st.booleans(),
    numbers=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=3),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_batch_gives_the_bits_of_plain_decoding_alone(
    case: Case, random: Random, scattered: bool, numbers: list[int]
) -> None:
    loop = EngineLoop.of(case.decoder, 12, _every_layer(case.decoder))
    if scattered:
        held = [[block] for block in range(0, 12, 3)]
        loop.allocator._free.difference_update(*held)
    texts = [case.texts[number] for number in numbers]
    sessions = [Running(list(text.tokens), text.prompt, SAMPLING) for text in texts]
    while any(session.num_computed < len(session.token_ids) for session in sessions):
        taking_part: list[tuple[Running, Alone, Segment, list[int]]] = []
        order = list(zip(sessions, texts, strict=True))
        random.shuffle(order)
        for session, text in order:
            done, length = session.num_computed, len(text.tokens)
            if done == length or random.randrange(5) == 0:
                continue
            stop = done + 1
            if done < text.prompt:
                stop = min(text.prompt, done + random.choice([1, 2, 13, 31, 32, 33, 100, 300]))
            tree = TokenTree()
            path: list[int] = []
            if stop >= text.prompt:
                right = text.tokens[stop : stop + random.randint(0, 9)]
                tree, path = tree_around(random, right, vocab=VOCAB)
            segment = loop.segment(session, tree, stop)
            segment = Segment(
                run=segment.run,
                start=segment.start,
                blocks=segment.blocks,
                tree_tokens=segment.tree_tokens,
                tree_parents=segment.tree_parents,
                wants_logits=stop >= text.prompt,
            )
            taking_part.append((session, text, segment, path))
        if not taking_part:
            continue
        segments = [segment for _, _, segment, _ in taking_part]
        batch = case.decoder.batch(segments)
        logits = loop.forward(segments)
        for (_, text, segment, path), root in zip(taking_part, batch.roots.tolist(), strict=True):
            if root >= 0:
                rows = [root, *(root + 1 + node for node in path)]
                first = segment.root_index
                _assert_same_bits(logits[rows], text.logits[first : first + len(rows)], "logits")
        loop.engine.accept((segment, path) for _, _, segment, path in taking_part)
        for session, _, segment, path in taking_part:
            session.num_computed += len(segment.run) + len(path)
    for session, text in zip(sessions, texts, strict=True):
        keys, values = _kv(loop.engine.pool, session)
        _assert_same_bits(keys, text.keys, "keys")
        _assert_same_bits(values, text.values, "values")
        _assert_same_bits(_states(loop.engine, session), text.states, "states")


@given(random=st.randoms(use_true_random=True), nodes=st.integers(1, 40))
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_a_tree_that_grows_has_the_bits_of_the_tree_at_once(case: Case, random: Random, nodes: int) -> None:
    text = random.choice(case.texts).tokens
    root = random.randrange(len(text))
    tokens = random.choices(range(VOCAB), k=nodes)
    parents = [random.randint(-1, node - 1) for node in range(nodes)]
    table = random.sample(range(4), 3)
    every = Engine(case.decoder, 4, _every_layer(case.decoder))
    grown = Engine(case.decoder, 4, _every_layer(case.decoder))
    if root:
        for engine in (every, grown):
            engine.forward([Segment(text[:root], 0, table, wants_logits=False)])
    at_once = every.forward([Segment([text[root]], root, table, tokens, parents)])
    # Another session's rows stand beside it.
    beside = Segment(text[:3], 0, [next(block for block in range(4) if block not in table)])
    first, *cuts = sorted(random.sample(range(nodes + 1), random.randint(1, min(nodes + 1, 5))))
    begun = Segment([text[root]], root, table, tokens[:first], parents[:first])
    logits = [grown.forward([beside, begun])[1:]]
    for done, stop in pairwise(sorted({first, *cuts, nodes})):
        more = Segment([], root + 1, table, tokens[:stop], parents[:stop], computed_nodes=done)
        logits.append(grown.forward([beside, more])[1:])
    _assert_same_bits(torch.cat(logits), at_once, "logits")
    session = Running(text, 0, SAMPLING, table, root + 1 + nodes)
    for got, expected in zip(_kv(grown.pool, session), _kv(every.pool, session), strict=True):
        _assert_same_bits(got, expected, "keys or values")
    _assert_same_bits(_states(grown, session), _states(every, session), "states")


@pytest.mark.parametrize("count", [2, 31, 32, 33, 65, 150])
def test_many_sessions_in_one_batch_change_no_bit(case: Case, count: int) -> None:
    text = case.texts[0]
    loop = EngineLoop.of(case.decoder, count)
    sessions = [Running(text.tokens, 0, SAMPLING) for _ in range(count)]
    for position in range(4):
        for session in sessions:
            session.num_computed = position
        segments = [
            Segment(run=part.run, start=part.start, blocks=part.blocks)
            for part in (loop.segment(session, TokenTree(), position + 1) for session in sessions)
        ]
        logits = loop.forward(segments)
        _assert_same_bits(logits, text.logits[position].expand(count, -1), f"position {position}")


def test_a_broken_block_table_gives_the_same_bits(case: Case) -> None:
    text = case.texts[3]
    engine = Engine(case.decoder, 8)
    blocks = (6, 1)
    tasks = [BlockTask(block) for block in blocks]
    half = len(text.tokens) // 2
    segments = [
        Segment(run=text.tokens[:half], start=0, blocks=blocks, wants_logits=False),
        Segment(run=text.tokens[half:], start=half, blocks=blocks),
    ]
    for segment in segments:
        logits = engine.forward([segment], tasks)
        tasks = []
    _assert_same_bits(logits[0], text.logits[-1], "logits")
    session = Running(text.tokens, 0, SAMPLING, list(blocks), len(text.tokens))
    _assert_same_bits(_kv(engine.pool, session)[0], text.keys, "keys")


def test_rows_that_nobody_reads_cannot_hurt(case: Case) -> None:
    """What rejected nodes left behind the text, and whoever held the block before, is not seen."""
    text = case.texts[1]
    engine = Engine(case.decoder, 2)
    spoil(engine.pool)
    logits = engine.forward([Segment(run=text.tokens, start=0, blocks=(0,))])
    _assert_same_bits(logits[0], text.logits[-1], "logits")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(case: Case, threads: int) -> None:
    loop = EngineLoop.of(case.decoder, 8)
    text = case.texts[3]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        session = Running(text.tokens, len(text.tokens), SAMPLING)
        segment = loop.segment(session, TokenTree())
        logits = loop.forward([segment])
    finally:
        torch.set_num_threads(before)
    _assert_same_bits(logits[0], text.logits[-1], "logits")
