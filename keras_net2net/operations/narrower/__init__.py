"""Narrower: which units can go, because they are duplicates or matter least."""
