"""An installation with some of Paceline's extras: a folder of links to this environment's files."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def install(folder: Path, *extras: str) -> Path:
    """Fill `folder` with links to what `pip install paceline[EXTRAS]` brings here, and nothing else."""
    brought = _closure([*_PROJECT["dependencies"], *(f"paceline[{extra}]" for extra in extras)])
    owners: dict[Path, set[str]] = {}
    for name, dist in ((_name(each), each) for each in distributions()):
        for file in dist.files or ():
            path = Path(file)
            if ".." not in path.parts:
                for prefix in (path, *path.parents[:-1]):
                    owners.setdefault(prefix, set()).add(name)
    wanted = set(brought)
    for path in sorted(owners):  # folders before what is in them
        target = folder / path
        if not owners[path] & wanted or target.parent.is_symlink() or target.exists():
            continue
        if owners[path] <= wanted:
            target.symlink_to(Path(str(brought[min(owners[path])].locate_file(path))).absolute())
        else:  # a folder that several packages share
            target.mkdir()
    info = folder / "paceline-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paceline\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in entries.items())
            for group, entries in _PROJECT["entry-points"].items()
        )
    )
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Variables of a `python -S` that sees our sources and what `install` put into `folder`."""
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))}


def _closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The packages that requirements bring, by name, those that they require in turn included."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            waiting += [(Requirement(text), wanted) for text in _requires(name, wanted, found)]
    return found


def _requires(name: str, extra: str, found: dict[str, Distribution]) -> list[str]:
    if name == "paceline":  # as this checkout says, not as it was when it was installed
        return list(_PROJECT["optional-dependencies"][extra]) if extra else list(_PROJECT["dependencies"])
    found[name] = distribution(name)
    return found[name].requires or []


def _name(dist: Distribution) -> str:
    return canonicalize_name(dist.metadata["Name"])
