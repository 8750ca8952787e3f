"""Architectures of models, as digests: which of those on record a model or a file has."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_net2net import internals


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What tells the architecture of a model from others.

    Args:
        layers: Digest of its layers: names, classes, nesting and weight shapes. The
            numbers in names that Keras makes up don't count.
        weights: Digest of the paths and shapes in a weights file of it.
        parameters: Its number of parameters.
    """

    layers: str
    weights: str
    parameters: int


def architecture(model: Any) -> Architecture:
    """The architecture of a model."""
    layers = internals.all_layers(model)
    made_up = sorted(
        (layer.name for layer in layers if _is_made_up(layer)), key=lambda name: (-len(name), name)
    )
    lines: list[str] = []
    _describe(model, 0, made_up, lines, set())
    shapes = internals.saved_shapes(model)
    return Architecture(_digest(lines), weights_digest(shapes), int(model.count_params()))


def _describe(layer: Any, depth: int, made_up: list[str], lines: list[str], seen: set[int]) -> None:
    if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
        return
    seen.add(id(layer))
    weights = [(v.name, tuple(v.shape)) for v in internals.own_variables(layer)]
    name = _plain_name(layer.name, made_up) if depth else ""
    lines.append(f"{depth} {type(layer).__name__} {name} {sorted(weights)}")
    for inner in internals.sublayers(layer):
        _describe(inner, depth + 1, made_up, lines, seen)


def _snake(kind: str) -> str:
    return re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()


def _is_made_up(layer: Any) -> bool:
    return bool(re.fullmatch(rf"{re.escape(_snake(type(layer).__name__))}_\d+", layer.name))


def _plain_name(name: str, made_up: list[str]) -> str:
    """A name without the number that Keras gives to those it makes up."""
    for one in made_up:
        if name == one or name.startswith(f"{one}_"):
            return re.sub(r"_\d+$", "", one) + name[len(one) :]
    return name


def weights_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A digest of the shapes in a weights file, optimizers and random seeds left out."""
    lines = []
    for path, shape in sorted(shapes.items()):
        parts = path.split("/")
        if "seed_generator" in parts or any(part.endswith("optimizer") for part in parts):
            continue
        lines.append(f"{path} {tuple(shape)}")
    return _digest(lines)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def digest_of_file(path: Any) -> str:
    """The digest of a `.weights.h5` file, as `weights_digest` makes it.

    Raises:
        OSError: If the file can't be read.
    """
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(note)
    return weights_digest(shapes)
