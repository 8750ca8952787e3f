"""The table of supported layers, made from the rules: `python -m keras_net2net.rules.table`."""

from __future__ import annotations

from keras_net2net.rules import builtin  # noqa: F401  (fills the rule book)
from keras_net2net.rules.registry import Rule, rules


def markdown() -> str:
    """The rule book as a Markdown table, one row for each rule of each family."""
    rows: dict[tuple[str, Rule], list[str]] = {}
    for name, rule in rules():
        family = _family(name, rule)
        rows.setdefault((family, rule), []).append(name.removeprefix("ops."))
    lines = ["| family | layers and operations | what happens to units |", "|---|---|---|"]
    for (family, rule), names in sorted(rows.items(), key=lambda row: row[0][0]):
        summary = (rule.__doc__ or "").strip().splitlines()[0]
        lines.append(
            f"| {family} | {', '.join(f'`{name}`' for name in sorted(names))} | {summary} |"
        )
    return "\n".join(lines)


def _family(name: str, rule: Rule) -> str:
    """The family of a layer: the Keras folder that its class stands in."""
    import keras

    if name.startswith("ops."):
        return "`keras.ops`"
    cls = getattr(keras.layers, name, None)
    module = cls.__module__ if cls is not None else rule.__module__
    parts = module.split(".")
    return parts[3] if parts[:3] == ["keras", "src", "layers"] else "custom"


if __name__ == "__main__":
    print(markdown())
