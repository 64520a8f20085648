"""The one way to Redis, and what its URLs name."""
