"""The model as a value: its structure, reading it, opening what has no rule, and copying it."""
