"""The heads that come with Paceline: small, whole, each for one target, with cards of how they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.heads import store

HEADS = sorted(store.SHIPPED.glob("*.safetensors"))


def test_one_comes_with_paceline() -> None:
    assert HEADS


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_a_shipped_head_is_small_and_loads_for_its_target_alone(path: Path) -> None:
    fingerprint = store.labels(path).weights_fingerprint

    assert path.stat().st_size < 16_000_000
    assert store.find(fingerprint) == path
    head = store.load(path, weights_fingerprint=fingerprint)
    tokens = head.tokens.tolist()
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < head.config.vocab
    assert all(weight.isfinite().all() for weight in head.parameters())
    with pytest.raises(store.HeadError):
        store.load(path, weights_fingerprint="0" * 32)


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_its_card_says_how_it_was_made(path: Path) -> None:
    card = store.labels(path).card

    assert card["command"].startswith("paceline train eagle")
    assert card["texts"]["distinct_tokens"] > 100_000
    assert len(card["texts"]["sha256"]) == 64
    assert card["tokens_seen"] > 0
    assert card["minutes"] > 0
    assert card["machine"]["cpu"]
    assert "texts_dropped" in card["shared_runs_of_13_words"]
    assert card["curve"][-1]["loss"] < card["curve"][0]["loss"]
