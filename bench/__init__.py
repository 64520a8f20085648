"""Measurements of Paceline: whole-system decoding speed, and drafting methods without the system."""
