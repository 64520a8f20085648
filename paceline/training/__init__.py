"""Training drafters: texts that the target wrote, its states, heads, small models."""
