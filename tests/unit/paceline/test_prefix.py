"""Keys of texts: the same at both ends of the wire, whatever pieces the text came in."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.blocks import BlockAllocator
from paceline.prefix import TextKeys, block_digest, key_of, root_of


@given(st.lists(st.integers(0, 1 << 31), max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_a_growing_texts_keys_are_those_of_the_whole(ids: list[int], cuts: list[int]) -> None:
    growing = TextKeys(4)
    for cut in sorted(cuts):
        growing.of(ids[:cut])
    assert list(growing.of(ids)) == list(TextKeys(4).of(ids))


def test_keys_are_as_the_protocol_says() -> None:
    first = hashlib.sha256(b"".join(token.to_bytes(8, "little") for token in (5, 6))).digest()
    second = hashlib.sha256(first + b"".join(token.to_bytes(8, "little") for token in (7, 70000))).digest()
    assert list(TextKeys(2).of([5, 6, 7, 70000, 8])) == [
        int.from_bytes(first[:8], "little"),
        int.from_bytes(second[:8], "little"),
    ]
    assert key_of(block_digest(first, [7, 70000])) == TextKeys(2).of([5, 6, 7, 70000])[1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12))
def test_what_a_cache_tells_is_what_a_session_finds_there(texts: list[list[int]]) -> None:
    """Block by block: a full block is found if and only if its key was told."""
    allocator = BlockAllocator(8, 2)
    assert allocator.kept is not None
    told: set[int] = set()
    cursor: int | None = None
    for text in texts:
        table: list[int] = []
        held = allocator.adopt(table, text)
        known = [key in told for key in TextKeys(2).of(text[:-1])]
        assert held // 2 == (known.index(False) if False in known else len(known))
        allocator.extend(table, -(-len(text) // 2))
        allocator.keep(table, text, len(text))
        allocator.release(table)
        changes = allocator.kept.since(cursor, 1000)
        told, cursor = (told | set(changes.added)) - set(changes.removed), changes.cursor


def test_a_cache_that_is_off_tells_nothing() -> None:
    assert BlockAllocator(8, 2, keep_texts=False).kept is None


@given(st.text(max_size=20), st.text(max_size=20))
def test_keys_of_two_salts_have_nothing_in_common(one: str, other: str) -> None:
    ids = list(range(8))
    keys = {salt: set(TextKeys(2, root_of(salt)).of(ids)) for salt in (one, other)}
    assert keys[one].isdisjoint(keys[other]) or one == other
    assert set(TextKeys(2).of(ids)) == set(TextKeys(2, root_of("")).of(ids))
