"""Constraints on texts: described plainly, compiled within bounds, matched token by token."""
