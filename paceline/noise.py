"""Gumbel noise keyed by (seed, absolute position, token id): the same wherever and whenever it is drawn.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11),
in numpy's implementation. Layout: key = (seed, DOMAIN); block b of position p is the counter
(b + 1, p, 0, 0), numpy counting up before its first block; word i of block b belongs to token 4 b + i.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Second key word: keeps our noise apart from any other use of the same seed.
DOMAIN = 0x7061_6365_6C69_6E65
_UINT64 = (1 << 64) - 1


def _words(seed: int, position: int, count: int) -> NDArray[np.uint64]:
    bits = np.random.Philox(
        key=np.array([seed & _UINT64, DOMAIN], dtype=np.uint64),
        counter=np.array([0, position, 0, 0], dtype=np.uint64),
    )
    return bits.random_raw(count)


def uniforms(
    seed: int, position: int, vocab_size: int, token_ids: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """52-bit uniforms strictly inside (0, 1) of every token, or of `token_ids` alone. float64"""
    if token_ids is None:
        words = _words(seed, position, vocab_size)
    else:
        words = _words(seed, position, int(token_ids.max(initial=-1)) + 1)[token_ids]
    # Odd multiples of 2**-53: exact in float64, symmetric, never 0 or 1.
    u = (words >> np.uint64(12)).astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    return u


def gumbel(
    seed: int, position: int, vocab_size: int, token_ids: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """-log(-log(u)) of the same tokens' uniforms; the same bits for all tokens and for some. float64

    u is exact in float64, so log(u) is accurate in both tails.
    """
    noise = uniforms(seed, position, vocab_size, token_ids)
    # In place: for a whole vocabulary, fresh arrays would cost as much as the logarithms.
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise
