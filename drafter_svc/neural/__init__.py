"""Drafting with models: sessions' states, batches, devices. The drafter's one part that has torch."""

import os

# Between two parallel operations GNU's OpenMP threads spin, by default for some 15 ms, on cores that others
# may want: the pod's event loop, and on one machine the verifier. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
