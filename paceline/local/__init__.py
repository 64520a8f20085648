"""A whole fleet on one machine: its plan, its processes, and a Redis of its own."""
