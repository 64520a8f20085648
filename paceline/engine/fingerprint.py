"""Which weights a model has: a head reads one model's states, and a vocabulary does not tell models apart."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Of the configuration only what every version of transformers writes alike.
_FACTS: Final = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "vocab_size",
)
_CACHE: Final = "paceline-fingerprint.json"


def weights_fingerprint(folder: str | Path) -> str:
    """32 hex digits of a model folder's shape and of all its tensors, however they are divided into files.

    Kept beside the model, where that can be written to, and computed anew when a file has changed.
    Raises `ValueError` for a folder without safetensors, `OSError` for one that cannot be read.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors")
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((folder / _CACHE).read_text(encoding="utf-8"))
        if kept["files"] == state:
            return str(kept["fingerprint"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = {name: config[name] for name in _FACTS if name in config}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for part in _tensors(files):
        digest.update(part)
    made = digest.hexdigest()
    with suppress(OSError):
        (folder / _CACHE).write_text(json.dumps({"files": state, "fingerprint": made}), encoding="utf-8")
    return made


def _tensors(files: list[Path]) -> Iterator[bytes | memoryview]:
    """Name, type, shape and bytes of each tensor, by name."""
    places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        places |= {name: (file, 8 + length, fields) for name, fields in header.items()}
    for name in sorted(places):
        file, base, fields = places[name]
        yield json.dumps([name, fields["dtype"], fields["shape"]]).encode()
        start, end = fields["data_offsets"]
        if start == end:
            continue
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view[base + start : base + end] as tensor,
        ):
            yield tensor
