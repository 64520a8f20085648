"""Which vocabularies are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def vocab_fingerprint(tokens: Mapping[str, int]) -> str:
    """Hash of a vocabulary (32 hex digits): equal only where tokens map to the same ids."""
    digest = hashlib.sha256()
    for token, index in sorted(tokens.items(), key=lambda item: item[1]):
        encoded = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%d:" % (index, len(encoded)))
        digest.update(encoded)
    return digest.hexdigest()[:32]
