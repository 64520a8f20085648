"""Names of the beginnings of texts, by which verifiers tell gateways what their KV holds.

A text is cut into blocks of as many ids as a block of KV has slots. A full block has a digest, SHA-256 over
the digest of the block before it and its own ids, so that it names all of the text up to its end. The first
64 bits of that are its key, and all that crosses the wire. Two texts of one key would mislead routing, and
nothing else: what a session shares is decided by the ids themselves. Texts of a salt begin from a digest of
their own, so that they share with texts of the same salt alone.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence

# The digest before the first block.
ROOT = b""
_KEY_BYTES = 8
# Most characters of a salt.
MAX_SALT = 256


def root_of(salt: str) -> bytes:
    """The digest before the first block of a text of this salt; without one it is `ROOT`."""
    return hashlib.sha256(b"salt:" + salt.encode(errors="surrogatepass")).digest() if salt else ROOT


def block_digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    """Digest of the text up to the end of a block of `token_ids` that follows the text of digest `before`."""
    return hashlib.sha256(before + _bytes_of(token_ids)).digest()


def key_of(digest: bytes) -> int:
    """The 64-bit key of a block's digest."""
    return int.from_bytes(digest[:_KEY_BYTES], "little")


class TextKeys:
    """The keys of a growing text's full blocks, each computed once."""

    def __init__(self, block_size: int, root: bytes = ROOT) -> None:
        """`root`: as `root_of` has it for the text's salt."""
        self._block_size = block_size
        self._digest = root
        self._keys: list[int] = []

    def of(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Keys of the full blocks of `token_ids`, which begin with all that was given before.

        100,000 ids take some 5 ms.
        """
        size = self._block_size
        start = len(self._keys) * size
        fresh = memoryview(_bytes_of(token_ids[start : len(token_ids) // size * size]))
        for at in range(0, len(fresh), 8 * size):
            self._digest = hashlib.sha256(self._digest + fresh[at : at + 8 * size]).digest()
            self._keys.append(key_of(self._digest))
        return self._keys


def _bytes_of(token_ids: Sequence[int]) -> bytes:
    """Each id as 8 bytes, little-endian."""
    ids = array("Q", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()
