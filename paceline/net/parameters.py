"""Sampling parameters in messages of gRPC, a gateway's and a verifier's: fields of the table's names."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from paceline.sampling import LogitsParams, parameters_of
from paceline.sampling.kinds import Biases, IdLists, Ids, Kind, Texts


def values(message: Message, kind: type[LogitsParams]) -> dict[str, Any]:
    """The parameters of `kind` in a message, unchecked; an optional field that is not set is left out."""
    fields = message.DESCRIPTOR.fields_by_name
    return {
        each.name: _read(each.kind, getattr(message, each.name))
        for each in parameters_of(kind)
        if not fields[each.name].has_presence or message.HasField(each.name)
    }


def write(values: LogitsParams, message: Message) -> None:
    """Set the fields of a message to parameters; an optional field is not set to its default."""
    fields = message.DESCRIPTOR.fields_by_name
    for each in parameters_of(type(values)):
        value = getattr(values, each.name)
        if isinstance(each.kind, Ids | Texts):
            getattr(message, each.name).extend(each.kind.plain(value))
        elif isinstance(each.kind, Biases):
            getattr(message, each.name).update(dict(value))
        elif isinstance(each.kind, IdLists):
            for ids in value:
                getattr(message, each.name).add(ids=ids)
        elif value != each.default or not fields[each.name].has_presence:
            setattr(message, each.name, value)


def _read(kind: Kind, value: Any) -> Any:
    if isinstance(kind, Biases):
        return kind.read(value.items())
    if isinstance(kind, IdLists):
        return kind.read(each.ids for each in value)
    return kind.read(value)
