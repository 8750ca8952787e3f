"""The page that names every layer and operation of the Keras that is installed.

It is made from the rules: `python -m keras_net2net.rules.table` prints it, and with
`--output docs/coverage.md` writes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.widths.registry import FOLLOWED, OPENED, REFUSED, State, state_of

# What `keras.layers` holds beside layers: base classes without a `call` of their own.
NOT_LAYERS = ("InputSpec", "Layer", "Wrapper")

# They take numbers, not tensors. An older Keras has classes for them that it doesn't use.
CONSTANTS = (
    "bartlett",
    "blackman",
    "empty",
    "eye",
    "hamming",
    "hanning",
    "identity",
    "kaiser",
    "ones",
    "tri",
    "zeros",
)

STATES = {
    FOLLOWED: "a rule follows units through it",
    OPENED: "the layers and operations inside it are followed",
    REFUSED: "it fixes the units that reach it; the reason stands in the table, and in the error",
    "unknown": "nothing is registered: it fixes the units that reach it",
}


def layer_classes() -> dict[str, type]:
    """Every layer class of the Keras that is installed, by its public name.

    Some have several; then it is the class's own (`Conv2D`, not `Convolution2D`).
    """
    public = {name: cls for name, cls in vars(keras.layers).items() if isinstance(cls, type)}
    return {
        name: cls
        for name, cls in sorted(public.items())
        if name not in NOT_LAYERS and (name == cls.__name__ or cls.__name__ not in public)
    }


def symbolic_operations() -> dict[str, Any]:
    """Every function below `keras.ops` that a symbolic tensor may pass, by its public name.

    Such a function has a class, of which it records an instance; constants such as
    `keras.ops.zeros`, and what runs at once such as `keras.ops.shape`, have none.
    """
    classes = internals.operation_classes()
    found = {}
    for prefix, module in (("", keras.ops), ("image.", keras.ops.image)):
        for name, function in sorted(vars(module).items()):
            if not callable(function) or isinstance(function, type) or name in CONSTANTS:
                continue
            if internals.operation_key(str(getattr(function, "__name__", ""))) in classes:
                found[prefix + name] = function
    return found


def coverage() -> str:
    """The page that names every layer and operation of Keras, with its state and why."""
    layer_rows = _rows((_family(cls), name, state_of(cls)) for name, cls in layer_classes().items())
    operation_rows = _rows(
        (_module(function), name, state_of(function))
        for name, function in symbolic_operations().items()
    )
    return "\n".join(
        [
            "# Every layer and operation of Keras",
            "",
            "Made from the rules: `python -m keras_net2net.rules.table --output docs/coverage.md`.",
            "Nothing is guessed. Each is in one of these states; a test fails for one that isn't.",
            "",
            *(
                f"- *{kind}*: {what}"
                for kind, what in STATES.items()
                if any(f"| {kind} |" in row for row in (*layer_rows, *operation_rows))
            ),
            "",
            "## `keras.layers`",
            "",
            "| family | layers | state | what happens to units, or why it is refused |",
            "|---|---|---|---|",
            *layer_rows,
            "",
            "## `keras.ops`",
            "",
            "| family | operations | state | what happens to units, or why it is refused |",
            "|---|---|---|---|",
            *operation_rows,
            "",
        ]
    )


def _rows(entries: Iterable[tuple[str, str, State | None]]) -> list[str]:
    """One row for all of a family that are in the same state for the same reason."""
    rows: dict[tuple[str, State], list[str]] = {}
    for family, name, state in entries:
        rows.setdefault((family, state or State("unknown", "Has no rule yet.")), []).append(name)
    order = list(STATES)
    return [
        f"| {family} | {_names(names)} | {state.kind} | {_sentence(state.summary)} |"
        for (family, state), names in sorted(
            rows.items(), key=lambda row: (row[0][0], order.index(row[0][1].kind), row[1])
        )
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _family(cls: type) -> str:
    """The family of a layer: the Keras folder that its class stands in."""
    return cls.__module__.split(".")[3]


def _module(function: Any) -> str:
    """The family of an operation: the Keras file that its class stands in."""
    classes = internals.operation_classes()
    return classes[internals.operation_key(function.__name__)].__module__.split(".")[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the page, or writes it."""
    parser = argparse.ArgumentParser(description=coverage.__doc__)
    parser.add_argument(
        "--output", type=Path, help="where to write the page, e.g. docs/coverage.md"
    )
    output = parser.parse_args(arguments).output
    if output is None:
        print(coverage(), end="")
    else:
        output.write_text(coverage())


if __name__ == "__main__":
    main()
