"""The drafting methods that the settings name, made before any verifier is known."""

from __future__ import annotations

import time
from collections.abc import Sequence

from drafter_svc import methods, registry
from drafter_svc.config import DrafterSettings
from drafter_svc.methods import UnknownMethodError
from drafter_svc.methods.base import Method, MethodFactory, Target, UnfitError
from drafter_svc.methods.prediction import PredictionFactory
from drafter_svc.tenants import Tenants
from paceline.service import telemetry

log = telemetry.logger(__name__)

# What nodes from the text itself are said to come from.
TEXT = "text"


class TeachableFactory(MethodFactory):
    """Makes methods that each tenant teaches separately, beginning with the tables for their vocabulary."""

    name = TEXT
    # They stay on the event loop: a tree of 31 nodes takes 0.2 to 0.3 ms of pure Python. A thread would hold
    # the same interpreter lock for as long, and each round would wait for two switches between threads.
    computes = False

    def __init__(self, settings: DrafterSettings, sources: str) -> None:
        """`sources`: names joined by +. Raises `UnknownMethodError`."""
        self.needs = methods.needs(sources)
        self._sources = sources
        self._folder = settings.tables or methods.tables.SHIPPED
        self._most_tenants = settings.tenants
        self.weights = tuple(sorted(str(path) for path in self._folder.glob("*.safetensors")))

    def create(self, target: Target) -> Method:
        """See `MethodFactory.create`. Without usable tables the method begins empty."""
        method = methods.create(self._sources, target.vocab_size)
        try:
            known = methods.tables.load(method, self._folder, target.vocab_fingerprint)
            log.info("drafting", model=target.model_id, method=method.name, tables=known)
        except methods.tables.TablesError as error:
            log.warning("starting without tables", model=target.model_id, reason=str(error))
        return Tenants(method, self._most_tenants)


def factories(settings: DrafterSettings) -> tuple[MethodFactory, ...]:
    """What `settings.method` names: one factory for all sources of text, then one for each other method.

    What drafts from the text drafts from clients' own predictions, too.

    Raises `UnknownMethodError`, and `UnfitError` for a method that cannot be used as configured.
    """
    others = registry.installed()
    names = settings.method.split("+")
    unknown = sorted({name for name in names if name not in others} - set(methods.SOURCES))
    if unknown or len(set(names)) != len(names):
        known = ", ".join((*methods.SOURCES, *others))
        what = (
            f"no drafting method {unknown[0]!r}" if unknown else f"{settings.method!r} names a method twice"
        )
        raise UnknownMethodError(f"{what}; there are {known}, and several are joined by +")
    sources = "+".join(name for name in names if name in methods.SOURCES)
    made: list[MethodFactory] = [TeachableFactory(settings, sources)] if sources else []
    if sources:
        # It fits any target: beside a model alone it would keep a pod where the model does not fit.
        made.append(PredictionFactory())
    made += [registry.make(others[name], settings) for name in names if name not in methods.SOURCES]
    return tuple(made)


def load(factories: Sequence[MethodFactory]) -> None:
    """Read the weights of methods that compute, as far as they are known. On those methods' thread.

    What cannot be read is logged, and tried again for a target: a method is missed only there.
    """
    for factory in factories:
        if not factory.computes:
            continue
        begun = time.monotonic()
        try:
            factory.load()
        except UnfitError as error:
            log.warning("a method's weights are not there yet", method=factory.name, reason=str(error))
        except Exception:
            log.exception("a method's weights are not there yet", method=factory.name)
        else:
            seconds = round(time.monotonic() - begun, 2)
            log.info("weights read", method=factory.name, seconds=seconds)
