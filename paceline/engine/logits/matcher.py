"""A constraint on a session's text, as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Matcher(Protocol):
    """Says which tokens a constraint lets stand next. It is at the session's last committed token."""

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        """Which tokens may stand behind the committed ids and `path`, ids of the row's way through the tree.

        Shape [ceil(vocab / 32)]: bit i % 32 of word i // 32, the lowest first, is 1 where token i may stand.
        Leaves the matcher where it is. A session whose matcher raises or leaves no token ends with an error.
        """
