"""Which weights a model has: a head reads one model's states, and a vocabulary does not tell models apart."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from paceline.engine.loading import ModelError

# Of the configuration what every version of transformers writes alike: a head that is shipped for a model
# must find it where a later version has converted it.
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


def weights_fingerprint(model: str | Path) -> str:
    """32 hex digits of a model's shape and of all its tensors, however they are divided into files.

    `model` is a folder, or the hub id of a model that is on this machine. What came out is kept beside the
    weights, or in the user's cache where that folder cannot be written to, and computed anew when a file has
    changed. Raises `ModelError` where there are no weights, `OSError` where they cannot be read.
    """
    folder = _folder(model)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no safetensors")
    state = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in (folder / "config.json", *files)
    ]
    places = (folder / _CACHE, _users_cache(folder))
    for place in places:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(place.read_text(encoding="utf-8"))
            if kept["files"] == state:
                return str(kept["fingerprint"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = {name: config[name] for name in _FACTS if name in config}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for part in _tensors(files):
        digest.update(part)
    made = digest.hexdigest()
    for place in places:
        with suppress(OSError):
            _write(place, json.dumps({"files": state, "fingerprint": made}))
            break
    return made


def _folder(model: str | Path) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), local_files_only=True))
    except (OSError, HFValidationError) as error:
        raise ModelError(f"the weights of {model} are not on this machine") from error


def _tensors(files: Sequence[Path]) -> Iterator[bytes | memoryview]:
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


def _users_cache(folder: Path) -> Path:
    """Where the fingerprint of a folder's weights is kept that cannot be kept beside them."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return base / "paceline" / "fingerprints" / f"{name}.json"


def _write(place: Path, text: str) -> None:
    """Whole or not at all: other processes may read it meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=place.parent, prefix=".paceline-", delete=False
    ) as file:
        file.write(text)
    made = Path(file.name)
    try:
        made.replace(place)
    except OSError:
        made.unlink()
        raise
