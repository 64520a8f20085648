"""Drafting methods as a drafter process makes them, for replays without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer

from drafter_svc import methods, registry
from drafter_svc.config import DrafterSettings
from drafter_svc.factory import TEXT
from drafter_svc.methods import UnknownMethodError
from drafter_svc.methods.base import Method, Needs, Target, UnfitError, check_fit
from drafter_svc.tenants import Tenants
from paceline.features import FeatureGrant
from paceline.vocabulary import vocab_fingerprint

__all__ = ["DraftingMethods", "Origin", "UnfitError", "UnknownMethodError", "made"]

# What `bench.recording.Target` computes in.
_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a drafter process knows of one of its methods before it makes it, for this target."""

    # Of its nodes' source.
    name: str
    computes: bool
    needs: Needs


@dataclass(frozen=True, slots=True)
class DraftingMethods:
    """The methods that a name joins by +: one for all that draft from the text, then each other one."""

    methods: Sequence[Method]
    feedback_top_k: int
    # Layers of the target whose hidden states they draft from, for those that do.
    layers: tuple[int, ...]
    origins: Sequence[Origin] = ()
    # Whether tables were asked for, and there are none for the method that drafts from the text.
    tables_missing: bool = False


def made(
    settings: DrafterSettings, *, width: int, vocab_size: int, tables: bool, tenants: int
) -> DraftingMethods:
    """The methods of `settings.method` for the target `settings.model`, whose states have `width` numbers.

    `tables`: begin with those that come with Paceline, if there are any for its vocabulary. Raises
    `UnknownMethodError` and `UnfitError`.
    """
    # It has torch and transformers' models behind it: --help is to answer without them.
    from paceline.engine.fingerprint import weights_fingerprint

    others = registry.installed()
    names = settings.method.split("+")
    text = [name for name in names if name not in others]
    fingerprint = vocab_fingerprint(AutoTokenizer.from_pretrained(settings.model).get_vocab())
    found: list[Method] = []
    origins: list[Origin] = []
    tables_missing = False
    if text:
        method = methods.create("+".join(text), vocab_size)
        tables_missing = tables and not methods.tables.load(method, methods.tables.SHIPPED, fingerprint)
        found.append(Tenants(method, tenants))
        origins.append(Origin(TEXT, False, methods.needs("+".join(text))))
    weights = weights_fingerprint(settings.model)
    factories = [registry.make(others[name], settings) for name in names if name in others]
    for factory in factories:
        fitting = tuple(want for want in factory.needs.features if want.weights_fingerprint in ("", weights))
        needs = replace(factory.needs, features=fitting)
        origins.append(Origin(factory.name, factory.computes, needs))
    wanted = [want.layers for origin in origins for want in origin.needs.features]
    layers = tuple(sorted({layer for each in wanted for layer in each}))
    grant = FeatureGrant(layers, width, _DTYPE) if layers else None
    target = Target(Path(settings.model).name, fingerprint, vocab_size, weights, grant)
    for factory in factories:
        check_fit(factory.needs, target)
        found.append(factory.create(target))
    top_k = max(origin.needs.feedback_top_k for origin in origins)
    return DraftingMethods(found, top_k, layers, origins, tables_missing)
