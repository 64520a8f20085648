"""The verifier: holds the sessions' KV, draws every token, decides the text."""

import os

# Between two parallel operations GNU's OpenMP threads spin, by default for some 15 ms: longer than the whole
# pause between two steps, in which the drafter, the gateway and the sender want that core. This is about a
# millisecond, ten times what lies between two operations of a step. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
