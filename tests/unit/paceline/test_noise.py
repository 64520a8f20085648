"""Keyed noise: the published generator, the documented layout, uniforms that never reach 0 or 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline import noise

WORDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31)

# Random123's kat_vectors, philox4x64-10: counter (4 words), key (2), output (4).
KNOWN_ANSWERS = [
    (
        [0, 0, 0, 0],
        [0, 0],
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
    ),
    (
        [2**64 - 1] * 4,
        [2**64 - 1] * 2,
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]


def _philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """The published algorithm in plain integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    word = 2**64 - 1
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_reference_and_numpy_give_the_published_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert _philox4x64_10(counter, key) == expected
    # numpy counts up before its first block, so it starts one below, borrow included.
    before = (sum(word << (64 * place) for place, word in enumerate(counter)) - 1) % 2**256
    start = [(before >> (64 * place)) % 2**64 for place in range(4)]
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(start, np.uint64))
    assert [int(word) for word in bits.random_raw(4)] == expected


@given(seed=WORDS, position=POSITIONS, block=st.integers(0, 40))
def test_layout_is_the_documented_one(seed: int, position: int, block: int) -> None:
    words = _philox4x64_10([block + 1, position, 0, 0], [seed, noise.DOMAIN])
    expected = [((word >> 12) + 0.5) * 2.0**-52 for word in words]
    drawn = noise.uniforms(seed, position, 4 * block + 4)[4 * block :]
    assert drawn.tolist() == expected


def test_pinned_values() -> None:
    # Other numbers here mean other texts for every seed that users have written down.
    assert noise.uniforms(0, 0, 3).tolist() == [0.24552894781809587, 0.8920416363996838, 0.5383525854600121]
    assert noise.uniforms(2**64 - 1, 12345, 3).tolist() == [
        0.690702047593602,
        0.17289236032687227,
        0.943279479300365,
    ]


@given(seed=WORDS, position=POSITIONS, vocab=st.integers(1, 300), more=st.integers(0, 300))
def test_a_token_has_the_same_noise_in_any_vocabulary(
    seed: int, position: int, vocab: int, more: int
) -> None:
    assert np.array_equal(
        noise.uniforms(seed, position, vocab), noise.uniforms(seed, position, vocab + more)[:vocab]
    )


@given(seed=WORDS, position=POSITIONS, data=st.data())
def test_gumbel_of_chosen_ids_is_bitwise_the_full_one(seed: int, position: int, data: st.DataObject) -> None:
    vocab = data.draw(st.integers(1, 500))
    ids = np.array(data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=vocab)), dtype=np.int64)
    full = noise.gumbel(seed, position, vocab)
    assert np.array_equal(noise.gumbel(seed, position, vocab, ids).view(np.uint64), full[ids].view(np.uint64))


def test_distinct_across_seed_position_and_token() -> None:
    drawn = np.stack(
        [noise.uniforms(seed, position, 128) for seed in (0, 1, 2, 2**63) for position in range(64)]
    )
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_uniforms_stay_strictly_inside_at_the_ends(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    monkeypatch.setattr(noise, "_words", lambda seed, position, count: np.full(count, word, dtype=np.uint64))
    u = noise.uniforms(0, 0, 1)[0]
    assert 0.0 < u < 1.0
    assert np.isfinite(noise.gumbel(0, 0, 1)[0])


def test_moments_of_the_standard_gumbel() -> None:
    drawn = np.concatenate([noise.gumbel(7, position, 1000) for position in range(400)])
    assert abs(drawn.mean() - np.euler_gamma) < 5 * np.sqrt(np.pi**2 / 6 / drawn.size)
    assert abs(drawn.var() - np.pi**2 / 6) < 0.03
