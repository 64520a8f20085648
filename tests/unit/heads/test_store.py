"""Files of heads: what is saved comes back, and no other target's head is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paceline.heads import store
from paceline.heads.eagle import EagleConfig, EagleHead
from tests.tiny import make_tiny_model

OURS, OTHERS = "0" * 32, "1" * 32
CONFIG = EagleConfig(
    layers=(1, 2, 3), width=32, inner=48, heads=4, kv_heads=2, head_dim=8, draft_vocab=16, vocab=64
)


def small_head() -> EagleHead:
    torch.manual_seed(0)
    head = EagleHead(CONFIG).to(torch.bfloat16)
    head.tokens.copy_(torch.arange(0, 64, 4))
    return head


def test_a_saved_head_comes_back_with_its_bits_and_its_card(tmp_path: Path) -> None:
    head = small_head()
    path = tmp_path / "head.safetensors"

    store.save(head, path, weights_fingerprint=OURS, card={"minutes": 3.5})

    loaded = store.load(path, weights_fingerprint=OURS)
    assert loaded.config == CONFIG
    assert store.labels(path).card == {"minutes": 3.5}
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_head_of_other_weights_is_refused_and_not_found(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    store.save(small_head(), path, weights_fingerprint=OTHERS, card={})

    with pytest.raises(store.HeadError, match=f"weights {OTHERS}"):
        store.load(path, weights_fingerprint=OURS)
    assert store.find(OURS, tmp_path) is None
    assert store.find(OTHERS, tmp_path) == path


def test_a_file_that_holds_no_head_is_named(tmp_path: Path) -> None:
    broken, foreign = tmp_path / "broken.safetensors", tmp_path / "foreign.safetensors"
    broken.write_bytes(b"no safetensors")
    save_file({"weight": torch.ones(2)}, foreign)

    for path in (broken, foreign):
        with pytest.raises(store.HeadError, match=path.name):
            store.load(path, weights_fingerprint=OURS)
    assert store.find(OURS, tmp_path) is None


def test_weights_that_do_not_fit_the_shape_in_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = small_head()
    head.head = torch.nn.Linear(32, 8, bias=False)
    store.save(head, path, weights_fingerprint=OURS, card={})

    with pytest.raises(store.HeadError, match="shape"):
        store.load(path, weights_fingerprint=OURS)


def test_the_embedding_is_read_from_the_targets_folder(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)

    assert store.target_embedding(folder).shape == (512, 64)


def test_a_folder_without_weights_has_no_embedding(tmp_path: Path) -> None:
    with pytest.raises(store.HeadError, match="no embedding"):
        store.target_embedding(tmp_path)
