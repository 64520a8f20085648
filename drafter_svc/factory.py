"""The drafting method that the settings name, made before any verifier is known."""

from __future__ import annotations

from drafter_svc import methods
from drafter_svc.config import DrafterSettings
from drafter_svc.methods.base import Method, Target
from drafter_svc.tenants import Tenants
from paceline.service import telemetry

log = telemetry.logger(__name__)


class TeachableFactory:
    """Makes methods that each tenant teaches separately, beginning with the tables for their vocabulary."""

    # They stay on the event loop: a tree of 31 nodes takes 0.2 to 0.3 ms of pure Python. A thread would hold
    # the same interpreter lock for as long, and each round would wait for two switches between threads.
    computes = False

    def __init__(self, settings: DrafterSettings) -> None:
        """Raises `UnknownMethodError`."""
        self.name = settings.method
        self.needs = methods.needs(settings.method)
        self._folder = settings.tables or methods.tables.SHIPPED
        self._most_tenants = settings.tenants

    def create(self, target: Target) -> Method:
        """See `MethodFactory.create`. Without usable tables the method begins empty."""
        method = methods.create(self.name, target.vocab_size)
        try:
            known = methods.tables.load(method, self._folder, target.vocab_fingerprint)
            log.info("drafting", model=target.model_id, method=method.name, tables=known)
        except methods.tables.TablesError as error:
            log.warning("starting without tables", model=target.model_id, reason=str(error))
        return Tenants(method, self._most_tenants)
