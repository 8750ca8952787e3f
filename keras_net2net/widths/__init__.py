"""The one idea: each axis is an expression of widths, and inference unifies what must agree."""
