"""Texts to train on, in one file of token ids that can be added to.

A line of JSON says whose ids they are; behind it each text is a header and its ids, little-endian. A text
that a killed process left half written is cut off when the file is opened to go on.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

# Job, kind, ids, ids that the model wrote and no other text has, answers.
_HEADER: Final = struct.Struct("<IHIIH")
_SPAN: Final = struct.Struct("<II")
_FORMAT: Final = 1


class CorpusError(Exception):
    """The file cannot be read as texts, or belongs to another vocabulary."""


@dataclass(frozen=True, slots=True)
class Text:
    """One conversation."""

    # Number of the job that wrote it: texts of one job share passages.
    job: int
    kind: str
    ids: tuple[int, ...]
    # Ids that the model wrote and that no other text of the file has.
    written: int
    # First index and end of each answer.
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose ids they are, and how they came to be."""

    # `paceline.vocabulary.vocab_fingerprint`, in hex.
    vocab: str
    kinds: tuple[str, ...]
    seed: int


def _pack(text: Text, origin: Origin) -> bytes:
    head = _HEADER.pack(
        text.job, origin.kinds.index(text.kind), len(text.ids), text.written, len(text.answers)
    )
    spans = b"".join(_SPAN.pack(*span) for span in text.answers)
    return head + spans + np.asarray(text.ids, "<u4").tobytes()


class Corpus:
    """A file that texts are added to."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Open or begin `path`. Raises `CorpusError` where it holds texts of another origin."""
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(
            {"format": _FORMAT, "vocab": origin.vocab, "kinds": origin.kinds, "seed": origin.seed}
        )
        self.origin = origin
        self.next_job = 0
        self.texts = 0
        self.written = 0
        self._file: BinaryIO
        if path.exists() and path.stat().st_size:
            found, texts, end = _read(path)
            if found != origin:
                raise CorpusError(f"{path} holds texts of another model, of other kinds or of another seed")
            for text in texts:
                self._count(text)
            self._file = path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            self._file = path.open("wb")
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def _count(self, text: Text) -> None:
        self.next_job = max(self.next_job, text.job + 1)
        self.texts += 1
        self.written += text.written

    def add(self, texts: Iterable[Text]) -> None:
        """Append texts; they are on disk when this returns."""
        for text in texts:
            self._file.write(_pack(text, self.origin))
            self._count(text)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> tuple[Origin, list[Text]]:
    """All whole texts of a file. Raises `CorpusError`."""
    origin, texts, _ = _read(path)
    return origin, texts


def _read(path: Path) -> tuple[Origin, list[Text], int]:
    data = path.read_bytes()
    line, newline, _ = data.partition(b"\n")
    try:
        fields = json.loads(line)
        if fields["format"] != _FORMAT:
            raise ValueError(f"format {fields['format']}")
        origin = Origin(str(fields["vocab"]), tuple(fields["kinds"]), int(fields["seed"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} holds no texts: {error}") from error
    texts: list[Text] = []
    end = len(line) + len(newline)
    for text, at in _texts(data, end, origin):
        texts.append(text)
        end = at
    return origin, texts, end


def _texts(data: bytes, at: int, origin: Origin) -> Iterator[tuple[Text, int]]:
    while at + _HEADER.size <= len(data):
        job, kind, count, written, answers = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        end = at + answers * _SPAN.size + 4 * count
        if end > len(data):
            return
        spans = tuple(_SPAN.unpack_from(data, at + number * _SPAN.size) for number in range(answers))
        ids = np.frombuffer(data, "<u4", count, at + answers * _SPAN.size)
        yield Text(job, origin.kinds[kind], tuple(ids.tolist()), written, spans), end
        at = end
