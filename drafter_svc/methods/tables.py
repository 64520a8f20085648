"""Files of the tables that a method starts with, one per vocabulary; `paceline bench tables` writes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from drafter_svc.methods.base import Teachable

# Tables that come with the package.
SHIPPED = Path(__file__).parent.parent / "tables"


class TablesError(ValueError):
    """A file of tables cannot be used; the message says why."""


def _path(folder: Path, vocab_fingerprint: str) -> Path:
    return folder / f"{vocab_fingerprint}.safetensors"


def save(method: Teachable, folder: Path, vocab_fingerprint: str) -> Path:
    """Write what a method has learned. Returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, vocab_fingerprint)
    save_file(method.tables(), path, metadata={"method": method.name})
    return path


def load(method: Teachable, folder: Path, vocab_fingerprint: str) -> bool:
    """Give a method the tables for a vocabulary. False if the folder has none. Raises `TablesError`."""
    # The fingerprint comes from a verifier: it must not name any other file.
    if not re.fullmatch(r"[0-9a-f]{1,64}", vocab_fingerprint):
        return False
    path = _path(folder, vocab_fingerprint)
    if not path.is_file():
        return False
    try:
        tables = load_file(path)
        for name, table in tables.items():
            if table.dtype != np.int32:
                raise ValueError(f"{name} holds {table.dtype}, not int32")
        method.restore(tables)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise TablesError(f"{path} holds no tables: {error}") from error
    return True
