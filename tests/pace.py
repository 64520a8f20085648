"""How long the steps of `tests.paced_verifier` take at least, said while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "STEP_SECONDS"


class Pace:
    """A file of seconds that the verifier looks at; without it steps take what they take."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def variables(self) -> Mapping[str, str]:
        """Of the verifier's environment."""
        return {VARIABLE: str(self._file)}

    @contextmanager
    def steps_take(self, seconds: float) -> Iterator[None]:
        """At least so long until the block is left, also the step that runs; infinity: the engine hangs."""
        before = self.seconds
        self._say(seconds)
        try:
            yield
        finally:
            self._say(before)

    @property
    def seconds(self) -> float:
        """What the file says at the moment."""
        return float(self._file.read_text()) if self._file.exists() else 0.0

    def _say(self, seconds: float) -> None:
        # It is read in every step: never half of it.
        written = self._file.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self._file)

    @classmethod
    def of_environment(cls) -> Pace:
        """In the verifier's process."""
        return cls(Path(os.environ[VARIABLE]))
