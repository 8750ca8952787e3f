"""The table of supported layers, made from the rules: `python -m keras_net2net.rules.table`."""

from __future__ import annotations

import keras

from keras_net2net.rules import builtin  # noqa: F401  (fills the rule book)
from keras_net2net.rules.registry import Rule, rules


def markdown() -> str:
    """The built-in rules as a Markdown table, one row for each rule of each family."""
    rows: dict[tuple[str, Rule], list[str]] = {}
    for name, rule in rules():
        if not name.startswith("ops.") and not hasattr(keras.layers, name):
            continue  # a user's class
        family = _family(name)
        rows.setdefault((family, rule), []).append(name.removeprefix("ops."))
    lines = ["| family | layers and operations | what happens to units |", "|---|---|---|"]
    for (family, rule), names in sorted(rows.items(), key=lambda row: row[0][0]):
        summary = (rule.__doc__ or "a rule without a docstring").strip().splitlines()[0]
        lines.append(
            f"| {family} | {', '.join(f'`{name}`' for name in sorted(names))} | {summary} |"
        )
    return "\n".join(lines)


def _family(name: str) -> str:
    """The family of a layer: the Keras folder that its class stands in."""
    if name.startswith("ops."):
        return "`keras.ops`"
    return str(getattr(keras.layers, name).__module__.split(".")[3])


if __name__ == "__main__":
    print(markdown())
