"""Drafting methods beside those from the text: found by entry points, imported only when asked for."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points

from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import MethodFactory, UnfitError

GROUP = "paceline.drafting"
_EXTRA = "paceline[neural]"


def installed() -> dict[str, EntryPoint]:
    """Every registered method by name. Nothing is imported."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return {entry.name: entry for entry in found}


def make(entry: EntryPoint, settings: DrafterSettings) -> MethodFactory:
    """Import a method and configure it. Raises `UnfitError` where packages or settings are missing."""
    try:
        factory: MethodFactory = entry.load()(settings)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        package = missing.partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            raise UnfitError(f"{entry.name}: {missing} is not installed here") from error
        raise UnfitError(
            f"{entry.name} needs packages that are not installed ({package} is missing): "
            f"pip install '{_EXTRA}'"
        ) from error
    if factory.name != entry.name:
        raise UnfitError(f"{entry.name}: its module calls it {factory.name!r}; both names must be the same")
    return factory
