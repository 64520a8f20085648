"""Messages to values and back; every bound refused with its field named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.constraints.constraint import Constraint, Kind
from paceline.features import MAX_CHUNK_BYTES, FeatureChunk, FeatureGrant, FeatureRequest
from paceline.net import wire
from paceline.net.handshake import Hello
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, Receipt, SessionKey, SourceTokens
from paceline.tree import TokenTree, TreeFault
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2
from paceline.verdict import Feedback, Verdict

VOCAB = 1000
IDS = st.integers(0, VOCAB - 1)
COUNT = st.integers(0, 2**32 - 1)


def float32(low: float, high: float, *, exclude_min: bool = False) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, exclude_min=exclude_min)


CONSTRAINTS = st.one_of(
    st.just(Constraint(Kind.JSON_OBJECT)),
    st.builds(Constraint.schema, st.dictionaries(st.text(), st.integers()), lenient=st.booleans()),
    st.builds(Constraint.choice, st.lists(st.text(min_size=1), min_size=1)),
    st.builds(Constraint, st.sampled_from([Kind.REGEX, Kind.GRAMMAR]), st.text(min_size=1).filter(str.strip)),
)
KEYS = st.builds(
    SessionKey, st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(1, wire.MAX_EPOCH)
)
SAMPLINGS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**32 - 1),
    temperature=float32(0, 100),
    top_k=st.integers(0, VOCAB),
    top_p=float32(0, 1, exclude_min=True),
    min_p=float32(0, 1),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=st.frozensets(IDS, max_size=64),
    stop_from=st.integers(0, 2**32 - 1),
    typical_p=st.floats(0, 1, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.01, 100),
    logit_bias=st.dictionaries(IDS, st.floats(-100, 100), max_size=9).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    allowed_token_ids=st.frozensets(IDS, max_size=9),
    bad_words=st.lists(st.lists(IDS, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple),
    constraint=st.none() | CONSTRAINTS,
).filter(lambda sampling: sampling.constraint is None or bool(sampling.stop_token_ids))
TREES = st.lists(st.tuples(COUNT, st.integers(-1, 40), float32(-50, 0)), max_size=40).map(
    lambda nodes: TokenTree(*(tuple(column) for column in zip(*nodes, strict=True))) if nodes else TokenTree()
)
FEEDBACKS = st.integers(1, 4).flatmap(
    lambda top_k: st.lists(
        st.tuples(IDS, st.lists(IDS, min_size=top_k, max_size=top_k), COUNT), min_size=1, max_size=6
    ).map(
        lambda rows: Feedback(
            tuple(token for token, _, _ in rows),
            (-1, *(number % row for row, (_, _, number) in enumerate(rows[1:], start=1))),
            tuple(each for _, ids, _ in rows for each in ids),
            top_k,
        )
    )
)
VERDICTS = st.builds(
    Verdict,
    key=KEYS,
    base_length=COUNT,
    committed=st.lists(IDS, max_size=9).map(tuple),
    accepted=COUNT,
    drafted=COUNT,
    draft_budget=COUNT,
    feedback=st.none() | FEEDBACKS,
    finished=st.booleans(),
)


REQUESTS = st.builds(
    FeatureRequest, st.lists(COUNT, max_size=8).map(tuple), COUNT, st.text(max_size=40, alphabet="0a-Z")
)
HELLOS = st.builds(
    Hello,
    protocol_version=st.integers(2, 2**32 - 1),
    drafter_id=st.text(max_size=9),
    vocab_fingerprint=st.text(max_size=9),
    feedback_top_k=COUNT,
    features=st.lists(REQUESTS, max_size=8).map(tuple),
    sources=st.lists(st.text(max_size=9), max_size=16).map(tuple),
)
GRANTS = st.builds(
    FeatureGrant,
    st.lists(COUNT, min_size=1, max_size=3).map(tuple),
    st.integers(1, 40),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)


@given(KEYS)
def test_a_key_survives_the_wire(key: SessionKey) -> None:
    assert wire.key_from_proto(wire.key_to_proto(key)) == key


@given(SAMPLINGS)
def test_sampling_survives_the_wire(sampling: SamplingParams) -> None:
    message = session_pb2.SamplingParams.FromString(wire.sampling_to_proto(sampling).SerializeToString())
    assert wire.sampling_from_proto(message, vocab_size=VOCAB) == sampling


@given(KEYS, COUNT, TREES)
def test_a_tree_survives_the_wire_sound_or_not(key: SessionKey, base: int, tree: TokenTree) -> None:
    message = tree_pb2.TokenTree.FromString(wire.tree_to_proto(key, base, tree).SerializeToString())
    assert wire.tree_from_proto(message) == (key, base, tree)


@given(VERDICTS)
def test_a_verdict_survives_the_wire(verdict: Verdict) -> None:
    message = tree_pb2.Verdict.FromString(wire.verdict_to_proto(verdict).SerializeToString())
    assert wire.verdict_from_proto(message, vocab_size=VOCAB) == verdict


@given(
    st.builds(
        Receipt,
        *[COUNT] * 5,
        sources=st.lists(st.builds(SourceTokens, st.text(max_size=3), COUNT, COUNT), max_size=3).map(tuple),
    )
)
def test_a_receipt_survives_the_wire(receipt: Receipt) -> None:
    assert wire.receipt_from_proto(wire.receipt_to_proto(receipt)) == receipt


@pytest.mark.parametrize("reason", list(FinishReason))
def test_a_finish_reason_survives_the_wire(reason: FinishReason) -> None:
    assert wire.finish_reason_from_proto(wire.finish_reason_to_proto(reason)) is reason


@pytest.mark.parametrize("value", [0, 99])
def test_an_unknown_finish_reason_is_refused(value: int) -> None:
    with pytest.raises(wire.WireError, match="unknown finish reason") as caught:
        wire.finish_reason_from_proto(value)  # type: ignore[arg-type]
    assert caught.value.field == "reason"


def test_every_tree_fault_has_its_own_code() -> None:
    codes = [wire.fault_to_code(fault) for fault in TreeFault]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize(
    ("session_id", "epoch", "field"),
    [
        ("", 1, "key.session_id"),
        ("x" * 65, 1, "key.session_id"),
        ("a b", 1, "key.session_id"),
        ("a{b}", 1, "key.session_id"),
        ("a\n", 1, "key.session_id"),
        ("ä", 1, "key.session_id"),
        ("a", 0, "key.epoch"),
        ("a", 2**53, "key.epoch"),
    ],
)
def test_a_bad_key_is_refused(session_id: str, epoch: int, field: str) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.key_from_proto(session_pb2.SessionKey(session_id=session_id, epoch=epoch))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def after(value: float, direction: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(direction)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", after(100, math.inf)),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", after(1, 2)),
        ("top_p", math.nan),
        ("min_p", -0.5),
        ("min_p", after(1, 2)),
        ("min_p", math.nan),
        ("top_k", VOCAB + 1),
        ("max_tokens", 0),
        ("stop_token_ids", [VOCAB]),
        ("stop_token_ids", list(range(65))),
        ("typical_p", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("logit_bias", {VOCAB: 1.0}),
        ("logit_bias", {1: 100.5}),
        ("logit_bias", {1: math.nan}),
        ("allowed_token_ids", [VOCAB]),
        ("bad_words", [session_pb2.IdSequence()]),
        ("bad_words", [session_pb2.IdSequence(ids=[1, VOCAB])]),
        ("bad_words", [session_pb2.IdSequence(ids=[1])] * 257),
    ],
)
def test_a_bad_sampling_parameter_is_refused_by_name(name: str, value: object) -> None:
    good = {"top_p": 1.0, "max_tokens": 1}
    message = session_pb2.SamplingParams(**{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(wire.WireError) as caught:
        wire.sampling_from_proto(message, vocab_size=VOCAB)
    assert caught.value.field == f"sampling.{name}"


def test_what_an_earlier_release_sends_asks_for_nothing_new() -> None:
    message = session_pb2.SamplingParams(top_p=1.0, max_tokens=5)
    assert wire.sampling_from_proto(message, vocab_size=VOCAB) == SamplingParams(5)


def test_an_id_outside_the_vocabulary_is_named_with_its_place() -> None:
    with pytest.raises(
        wire.WireError, match="prompt_ids: id 1000 at index 2 is not in the vocabulary of 1000"
    ):
        wire.ids_from_proto([1, 999, 1000], vocab_size=VOCAB, field="prompt_ids")


def feedback(
    row_token: Sequence[int] = (1,), row_parent: Sequence[int] = (-1,), top_ids: Sequence[int] = (1,)
) -> tree_pb2.Feedback:
    return tree_pb2.Feedback(row_token=row_token, row_parent=row_parent, top_ids=top_ids, top_k=1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"committed": [VOCAB]}, "committed"),
        ({"feedback": tree_pb2.Feedback(row_token=[1], top_ids=[1, 2, 3], top_k=2)}, "feedback.top_ids"),
        ({"feedback": feedback(row_token=[VOCAB])}, "feedback.row_token"),
        ({"feedback": feedback(top_ids=[VOCAB])}, "feedback.top_ids"),
        ({"feedback": feedback(row_parent=[])}, "feedback.row_parent"),
        ({"feedback": feedback(row_parent=[-1, 0])}, "feedback.row_parent"),
        ({"feedback": feedback(row_parent=[0])}, "feedback.row_parent"),
        ({"feedback": feedback(row_parent=[-2])}, "feedback.row_parent"),
        ({"feedback": feedback([1, 2], [-1, -1], [3, 4])}, "feedback.row_parent"),
        ({"feedback": feedback([1, 2], [-1, 1], [3, 4])}, "feedback.row_parent"),
        ({"key": session_pb2.SessionKey(session_id="a")}, "key.epoch"),
    ],
)
def test_a_bad_verdict_is_refused_by_field(changes: dict[str, object], field: str) -> None:
    message = tree_pb2.Verdict(key=session_pb2.SessionKey(session_id="a", epoch=1))
    for name, value in changes.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            getattr(message, name).CopyFrom(value)
    with pytest.raises(wire.WireError) as caught:
        wire.verdict_from_proto(message, vocab_size=VOCAB)
    assert caught.value.field == field


@given(HELLOS)
def test_a_hello_survives_the_wire(hello: Hello) -> None:
    message = verifier_pb2.Hello.FromString(wire.hello_to_proto(hello).SerializeToString())
    assert wire.hello_from_proto(message) == hello


@given(HELLOS)
def test_a_drafter_of_version_1_asks_for_no_states_and_has_one_source(hello: Hello) -> None:
    message = wire.hello_to_proto(replace(hello, protocol_version=1))
    assert wire.hello_from_proto(message) == replace(hello, protocol_version=1, features=(), sources=())


def test_of_a_hello_too_long_no_more_is_taken_than_shows_it() -> None:
    request = verifier_pb2.FeatureRequest(layers=range(100_000))
    hello = wire.hello_from_proto(
        verifier_pb2.Hello(protocol_version=2, features=[request] * 50, sources=["x"] * 50)
    )
    assert (len(hello.features), len(hello.features[0].layers), len(hello.sources)) == (9, 9, 17)


@given(GRANTS)
def test_a_grant_survives_the_wire(grant: FeatureGrant) -> None:
    message = verifier_pb2.FeatureGrant.FromString(wire.grant_to_proto(grant).SerializeToString())
    assert wire.grant_from_proto(message) == grant


@pytest.mark.parametrize(
    "changed", [{"layers": ()}, {"width": 0}, {"dtype": "int8"}], ids=["layers", "width", "type"]
)
def test_a_grant_of_nothing_is_refused(changed: dict[str, object]) -> None:
    grant = FeatureGrant((1, 2), 8, "bfloat16")
    with pytest.raises(wire.WireError, match="features"):
        wire.grant_from_proto(wire.grant_to_proto(replace(grant, **changed)))  # type: ignore[arg-type]


@given(KEYS, GRANTS, COUNT, st.integers(1, 5), st.data())
def test_a_chunk_survives_the_wire(
    key: SessionKey, grant: FeatureGrant, position: int, count: int, data: st.DataObject
) -> None:
    size = count * grant.position_bytes
    chunk = FeatureChunk(key, position, count, data.draw(st.binary(min_size=size, max_size=size)))
    message = verifier_pb2.FeatureChunk.FromString(wire.chunk_to_proto(chunk).SerializeToString())
    assert wire.chunk_from_proto(message, grant) == chunk


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 31), (2, 32), (32768, MAX_CHUNK_BYTES + 32)])
def test_a_chunk_of_another_size_than_it_says_is_refused(count: int, size: int) -> None:
    grant = FeatureGrant((1, 2), 8, "bfloat16")
    message = wire.chunk_to_proto(FeatureChunk(SessionKey("s", 1), 0, count, bytes(size)))
    with pytest.raises(wire.WireError, match=r"features\.states"):
        wire.chunk_from_proto(message, grant)


def test_a_chunk_larger_than_any_may_be_is_refused() -> None:
    grant = FeatureGrant((1,), 1 << 16, "bfloat16")
    message = wire.chunk_to_proto(FeatureChunk(SessionKey("s", 1), 0, 9, bytes(9 << 17)))
    with pytest.raises(wire.WireError, match="at most 1048576"):
        wire.chunk_from_proto(message, grant)
