"""Drafting with models: sessions' states, batches, devices. The drafter's one part that has torch."""
