"""Measurements: the whole system, the engine alone, drafting methods alone, and other servers."""
