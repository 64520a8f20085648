"""Strategies for protobuf messages, made from their descriptors: a new field is fuzzed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

# Plausible values of fields, and whole plausible messages, by full name.
Plausible = Mapping[str, st.SearchStrategy[Any]]

_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_EDGES = (-1, 0, 1, 511, 512, 2**16, 2**53)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
_FEW_VALUES = st.one_of(st.integers(0, 4), st.integers(0, 70))
_FEW_MESSAGES = st.integers(0, 3)
# Of so many fields one is hostile; 0 is none.
_RATES = st.sampled_from([0, 0, 8, 8, 4, 1])
_MOST_LEVELS = 4


def encoded(descriptor: Descriptor, plausible: Plausible) -> st.SearchStrategy[bytes]:
    """A message's bytes: whole, damaged, or no message at all."""
    whole = message(descriptor, plausible).map(lambda made: made.SerializeToString())
    return st.one_of(whole, whole, whole, damaged(whole), st.binary(max_size=64))


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are cut off, changed, put in or said twice."""
    data = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        part = data[start:end] * 2 if draw(st.booleans()) else draw(st.binary(max_size=8))
        data = data[:start] + part + (b"" if draw(st.integers(0, 2)) == 2 else data[end:])
    return data


@st.composite
def message(draw: st.DrawFn, descriptor: Descriptor, plausible: Plausible) -> Message:
    """A message with plausible values only, with some hostile ones, or with nothing but those."""
    return _message(draw, descriptor, plausible, draw(_RATES), _MOST_LEVELS)


def _message(
    draw: st.DrawFn, descriptor: Descriptor, plausible: Plausible, rate: int, levels: int
) -> Message:
    known = plausible.get(descriptor.full_name)
    if known is not None and not _hostile(draw, rate):
        whole: Message = draw(known)
        return whole
    given = GetMessageClass(descriptor)()
    chosen = {oneof.name: draw(_one_of_fields(oneof)) for oneof in descriptor.oneofs}
    for field in descriptor.fields:
        if field.containing_oneof is not None and chosen[field.containing_oneof.name] is not field:
            continue
        hostile = _hostile(draw, rate)
        if (hostile and draw(st.booleans())) or (field.message_type is not None and not levels):
            continue
        count = 1
        if field.is_repeated:
            count = draw(_FEW_VALUES if field.message_type is None else _FEW_MESSAGES)
        values = [_value(draw, field, plausible, rate, hostile, levels) for _ in range(count)]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(given, field.name).update({entry.key: entry.value for entry in values})
        elif field.is_repeated:
            getattr(given, field.name).extend(values)
        elif field.message_type is not None:
            getattr(given, field.name).CopyFrom(values[0])
        else:
            setattr(given, field.name, values[0])
    return given


def _value(
    draw: st.DrawFn, field: FieldDescriptor, plausible: Plausible, rate: int, hostile: bool, levels: int
) -> Any:
    if field.message_type is not None:
        return _message(draw, field.message_type, plausible, rate, levels - 1)
    likely = None if hostile else plausible.get(field.full_name)
    return draw(_scalar(field) if likely is None else likely)


def _hostile(draw: st.DrawFn, rate: int) -> bool:
    return rate > 0 and draw(_up_to(rate)) == rate


@cache
def _up_to(highest: int) -> st.SearchStrategy[int]:
    return st.integers(0, highest)


@cache
def _one_of_fields(oneof: Any) -> st.SearchStrategy[FieldDescriptor | None]:
    return st.sampled_from([*oneof.fields, None])


@cache
def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _BITS:
        low, high = _BITS[kind]
        edges = [low, *(value for value in _EDGES if low < value < high), high - 1, high]
        return st.one_of(st.sampled_from(edges), st.integers(low, high))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.floats(width=32 if kind == FieldDescriptor.CPPTYPE_FLOAT else 64)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=80)
    return _TEXT
