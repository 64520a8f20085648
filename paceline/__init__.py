"""Paceline: distributed speculative decoding. This package holds what its services agree on."""

__version__ = "0.1.0"
