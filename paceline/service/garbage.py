"""Python's garbage collector, kept away from what a service loads once and holds to its end.

With torch and transformers that is half a million objects. A full collection looks at all of them: a quarter
of a second in a verifier, in which no session gets a token. Those during imports are a sixth of their time.
"""

from __future__ import annotations

import gc


def rest() -> None:
    """Collect nothing until `spare`: while a service's modules are imported."""
    gc.disable()


def spare() -> None:
    """Collect from now on, but never look again at what there is by now."""
    gc.freeze()
    gc.enable()
