"""The process of `trial`: says of constraints, a line of JSON each, what is wrong with them."""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Final

from paceline.constraints.compiler import compiled
from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.vocabulary import Vocabulary

# What one trial may take: of a CPU, and of address space, most of which the interpreter maps and never uses.
CPU_SECONDS: Final = 1.0
BYTES: Final = 1 << 30


def serve(cpu_seconds: float) -> None:
    """Answer until there are no more. Ends without an answer to one that takes too much."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Its parent's to deal with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    vocabulary = Vocabulary.bytes_only()
    for line in sys.stdin.buffer:
        constraint = Constraint.read(json.loads(line))
        problem = None
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            compiled(constraint, vocabulary)
        except ConstraintError as error:
            problem = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]))
