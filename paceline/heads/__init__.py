"""Trained drafting heads: definitions and inference. Arrays in, arrays out."""
