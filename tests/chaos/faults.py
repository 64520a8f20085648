"""What is done to a fleet: to which service, how, and when in a session's life."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Target(StrEnum):
    """A kind of service; which of several is struck is drawn."""

    GATEWAY = "gateway"
    VERIFIER = "verifier"
    DRAFTER = "drafter"
    REDIS = "redis"


class Kind(StrEnum):
    """What happens to it."""

    # kill -9; it is started again.
    KILL = "kill"
    # SIGSTOP, then SIGCONT.
    PAUSE = "pause"
    # All its connections fall silent, and new ones get no answer.
    STALL = "stall"
    # All its connections are reset, and so are new ones.
    RESET = "reset"
    # All its packets are dropped.
    DROP = "drop"


class Stage(StrEnum):
    """Where in its life the session is whose client triggers the fault."""

    # The request is on its way: no verifier has taken the session.
    QUEUED = "queued"
    # A verifier has it, and no token has come.
    PREFILL = "prefill"
    FIRST_TOKEN = "first token"
    MID_STREAM = "mid-stream"
    # At most a few tokens are to come.
    FINISHING = "finishing"


class Heal(StrEnum):
    """When the service is given back."""

    # At once: nobody need have noticed.
    SOON = "soon"
    # When every session that was running goes on without it.
    RECOVERED = "recovered"


# Share of faults whose services are given back before anybody need have noticed.
_HEALED_SOON = 0.25
# Two at once.
PAIRS = (
    (Target.VERIFIER, Target.DRAFTER),
    (Target.VERIFIER, Target.REDIS),
    (Target.GATEWAY, Target.VERIFIER),
    (Target.GATEWAY, Target.REDIS),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, perhaps of two services at once."""

    targets: tuple[Target, ...]
    kind: Kind
    stage: Stage
    heal: Heal

    @property
    def what(self) -> str:
        """The targets' names."""
        return " + ".join(self.targets)


def draw(
    count: int,
    seed: int,
    *,
    kinds: Sequence[Kind],
    targets: Collection[Target] = tuple(Target),
    pairs: Sequence[tuple[Target, ...]] = PAIRS,
) -> list[Fault]:
    """`count` faults in an order drawn by `seed`; every ninth strikes a pair at once.

    All targets and kinds come before any comes again, and each of them at every stage before one comes again.
    """
    random = Random(seed)
    one = _endless(list(product([(target,) for target in targets], kinds)), random)
    pairs = [pair for pair in pairs if set(pair) <= set(targets)]
    two = _endless(list(product(pairs, kinds)), random) if pairs else one
    stages: defaultdict[object, Iterator[Stage]] = defaultdict(lambda: _endless(list(Stage), random))
    faults = []
    for number in range(1, count + 1):
        struck, kind = next(two if number % 9 == 0 else one)
        heal = Heal.SOON if random.random() < _HEALED_SOON else Heal.RECOVERED
        faults.append(Fault(struck, kind, next(stages[struck, kind]), heal))
    return faults


def _endless(choices: Sequence[T], random: Random) -> Iterator[T]:
    """All choices, of which there are some, in an order of their own, again and again."""
    while True:
        yield from random.sample(choices, len(choices))
