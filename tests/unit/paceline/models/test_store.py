from __future__ import annotations

import hashlib
import json
import multiprocessing
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline.models.store import ModelError, ModelStore, PackagedModel
from tests.tiny_gguf import write_tiny_gguf


def silent(stage: str) -> None: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is, with one package that carries a model."""
    site = tmp_path_factory.mktemp("site")
    (site / "tiny_gguf_package").mkdir()
    write_tiny_gguf(site / "tiny_gguf_package" / "tiny.gguf")
    (site / "tiny_gguf_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    return site


@pytest.fixture
def packaged(site: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    monkeypatch.syspath_prepend(site)
    digest = hashlib.sha256((site / "tiny_gguf_package" / "tiny.gguf").read_bytes()).hexdigest()
    return PackagedModel(
        name="Tiny",
        package="tiny-gguf-package",
        version="1.0",
        member="tiny_gguf_package/tiny.gguf",
        sha256=digest,
        licence="Apache-2.0",
        wheel_megabytes=1,
    )


def test_a_packaged_model_is_converted_once_and_works(packaged: PackagedModel, tmp_path: Path) -> None:
    store = ModelStore(tmp_path, (packaged,))
    stages: list[str] = []
    local = store.resolve(None, stages.append)
    assert local.name == "Tiny"
    assert stages
    assert not list(local.folder.parent.glob(".making-*"))

    weights = load_file(local.folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(local.folder)
    tokenizer = AutoTokenizer.from_pretrained(local.folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 257
    text = "naïve — 東京"
    assert tokenizer.decode(tokenizer.encode(text)) == text

    again: list[str] = []
    assert store.resolve("tiny", again.append) == local
    assert again == []


def test_another_version_is_made_anew(packaged: PackagedModel, tmp_path: Path) -> None:
    store = ModelStore(tmp_path, (packaged,))
    store.fetch(packaged, silent)
    newer = replace(packaged, version="1.1")
    assert not store.is_ready(newer)
    store.fetch(newer, silent)
    assert store.is_ready(newer)
    assert not store.is_ready(packaged)


def test_a_damaged_cache_is_not_ready(packaged: PackagedModel, tmp_path: Path) -> None:
    store = ModelStore(tmp_path, (packaged,))
    folder = store.folder(packaged)
    folder.mkdir(parents=True)
    (folder / "paceline.json").write_text("{")
    assert not store.is_ready(packaged)


def test_a_file_that_is_not_the_expected_one_is_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    store = ModelStore(tmp_path, (packaged,))
    with pytest.raises(ModelError, match="sha256"):
        store.fetch(replace(packaged, sha256="0" * 64), silent)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def _fetch(root: Path, packaged: PackagedModel, site: Path) -> list[str]:
    import sys

    sys.path.insert(0, str(site))
    stages: list[str] = []
    ModelStore(root, (packaged,)).fetch(packaged, stages.append)
    return stages


def test_processes_that_race_make_it_once(packaged: PackagedModel, site: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        stages = pool.starmap(_fetch, [(tmp_path, packaged, site)] * 2)
    assert sum(any("converting" in stage for stage in each) for each in stages) == 1
    assert ModelStore(tmp_path, (packaged,)).is_ready(packaged)


def test_a_package_that_is_not_installed_comes_from_the_index(
    packaged: PackagedModel, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(packaged, package="tiny-elsewhere", member="tiny_elsewhere/tiny.gguf")
    index = tmp_path / "index"
    index.mkdir()
    info = "tiny_elsewhere-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_elsewhere-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(site / "tiny_gguf_package" / "tiny.gguf", elsewhere.member)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-elsewhere\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    store = ModelStore(tmp_path / "cache", (elsewhere,))
    store.fetch(elsewhere, silent)
    assert store.is_ready(elsewhere)

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    missing = replace(elsewhere, name="Missing")
    with pytest.raises(ModelError, match=r"cannot fetch tiny-elsewhere==1\.0"):
        store.fetch(missing, silent)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        store.resolve(str(folder), silent)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    local = store.resolve(str(folder), silent)
    assert (local.name, local.folder, local.can_chat) == ("mine", folder, False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert local.can_chat


@pytest.mark.parametrize("model", ["./missing", "/missing/folder", "~/missing", "a/b/c", "with space"])
def test_a_name_that_can_be_nothing_says_what_would_be(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give a folder, a hub id"):
        ModelStore(tmp_path).resolve(model, silent)
