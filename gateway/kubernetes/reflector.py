"""A copy of all objects of a kind, kept up to date by list and watch."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.kubernetes.cluster import Object
from gateway.kubernetes.failures import why
from paceline.service import telemetry

log = telemetry.logger(__name__)

# A watch is asked to last so long. It is the longest that changes stay unseen where one breaks in silence.
_WATCH_SECONDS = 45
# A full list is asked for this often, so that no mistake lasts.
_RESYNC_SECONDS = 600.0
# Pause after a failure: the first, and the longest; it doubles in between.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 20.0


class Source(Protocol):
    """Lists and watches objects. Both raise whatever goes wrong."""

    def objects(self) -> tuple[list[Object], str]:
        """All of them, and the version of this list."""
        ...

    def events(self, version: str, seconds: int) -> Iterable[Object]:
        """What happens after `version`, for at most so long."""
        ...


class WatchError(Exception):
    """A watch has told an error: as a rule that it began at a version that is no longer known."""


class Reflector:
    """Tells all objects after each change. While nothing can be heard, the last ones hold."""

    def __init__(self, source: Source, tell: Callable[[Iterable[Object]], None]) -> None:
        self._source = source
        self._tell = tell
        self._objects: dict[str, Object] = {}
        self._version = ""
        self._failures = 0

    def run(self, stop: threading.Event) -> None:
        """Keep the copy until `stop` is set: it is looked at when a watch ends. Never raises."""
        while not stop.is_set():
            try:
                self._take_all()
                self._follow(stop)
            except Exception as error:  # Whatever it is, the objects that are known stay.
                stop.wait(self._pause(error))

    def _take_all(self) -> None:
        objects, self._version = self._source.objects()
        self._objects = {each["metadata"]["uid"]: each for each in objects}
        self._tell(self._objects.values())

    def _follow(self, stop: threading.Event) -> None:
        """Follow watches, each from where the last has ended, until a full list is due."""
        due = time.monotonic() + _RESYNC_SECONDS * random.uniform(0.8, 1.2)
        while time.monotonic() < due and not stop.is_set():
            # Gateways that were started together do not come back together.
            for event in self._source.events(self._version, round(_WATCH_SECONDS * random.uniform(0.8, 1.2))):
                self._take(event)
                self._went_well()
            self._went_well()

    def _take(self, event: Object) -> None:
        kind, changed = event["type"], event["object"]
        if kind == "ERROR":
            raise WatchError(f"{changed.get('code')} {changed.get('reason')}: {changed.get('message')}")
        self._version = changed["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._objects.pop(changed["metadata"]["uid"], None)
        else:
            self._objects[changed["metadata"]["uid"]] = changed
        self._tell(self._objects.values())

    def _went_well(self) -> None:
        if self._failures > 1:
            log.info("the Kubernetes API server tells again")
        self._failures = 0

    def _pause(self, error: Exception) -> float:
        """How long to wait after this failure. One alone is nothing to speak of: watches break."""
        self._failures += 1
        if self._failures == 2:
            log.warning(
                "the Kubernetes API server tells nothing, going on with what is known",
                why=why(error),
            )
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 16))
        return longest * random.uniform(0.5, 1.0)
