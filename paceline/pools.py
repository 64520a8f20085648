"""Names of pools: verifiers, or drafters, that are alike and are scaled together."""

from __future__ import annotations

import re

DEFAULT_POOL = "default"
# A DNS label, so that it can be part of the name of a Kubernetes object.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class PoolNameError(ValueError):
    """A pool's name cannot be used; the message says what can."""


def parse_pool(text: str) -> str:
    """The name of a pool. Raises `PoolNameError`."""
    if not _LABEL.fullmatch(text):
        raise PoolNameError(
            "a pool's name is 1 to 63 lower-case letters, digits and hyphens, "
            f"with a letter or digit at both ends, as in gpu-large; got {text[:80]!r}"
        )
    return text
