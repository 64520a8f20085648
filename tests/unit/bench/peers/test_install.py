from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from bench.peers import LLAMA, LLAMA_BF16, VLLM, VLLM_NGRAM
from bench.peers.catalog import Field, MissingError, enter
from bench.peers.gguf import to_bfloat16
from bench.peers.install import Environment, Peers
from bench.system import Plan
from paceline.models.store import PACKAGED, LocalModel
from tests.tiny_gguf import write_tiny_gguf


def quiet(what: str, done: int = 0, of: int | None = None) -> None:
    pass


def test_a_bfloat16_file_says_and_weighs_the_same(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf")
    to_bfloat16(tmp_path / "a.gguf", tmp_path / "b.gguf")
    before, after = GGUFReader(tmp_path / "a.gguf"), GGUFReader(tmp_path / "b.gguf")
    said = {name: field.contents() for name, field in after.fields.items()}
    for name, field in before.fields.items():
        if not name.startswith("GGUF.") and name != "general.file_type":
            assert said[name] == field.contents(), name
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        if len(old.shape) == 1:
            assert np.array_equal(new.data, old.data)
        else:
            assert new.tensor_type is GGMLQuantizationType.BF16
            values = (new.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_allclose(values, old.data, rtol=2**-8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize("name", ["vllm", "llama.cpp"])
def test_an_environment_is_old_when_its_file_has_changed(tmp_path: Path, name: str) -> None:
    environment = Environment(name, tmp_path)
    assert not environment.installed
    environment.folder.mkdir()
    (environment.folder / ".installed").write_text("of another file")
    assert not environment.installed


@pytest.mark.parametrize("name", [VLLM, VLLM_NGRAM, LLAMA, LLAMA_BF16])
def test_what_is_not_installed_is_missing(tmp_path: Path, name: str) -> None:
    plan = Plan(LocalModel("m", tmp_path, "m"), [], 64, "float32", 1, None, tmp_path)
    with pytest.raises(MissingError, match="make peers"):
        enter(name, Field(plan, Peers(tmp_path), 1, 128, {}), quiet)


def test_only_packaged_models_have_a_gguf(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    (peers.llama_cpp.folder / "lib/python3/site-packages").mkdir(parents=True)
    packaged = LocalModel(PACKAGED[0].name, tmp_path, PACKAGED[0].source)
    assert str(peers.quantised(packaged)).endswith(PACKAGED[0].member)
    assert peers.bfloat16(packaged) == tmp_path / f"{packaged.name}.BF16.gguf"
    other = LocalModel("m", tmp_path, "m")
    assert (peers.quantised(other), peers.bfloat16(other)) == (None, None)
