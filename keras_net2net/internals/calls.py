"""Calls of layers: what happens inside of one, watched or kept from being recorded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_net2net.internals.layers import all_layers, is_keras_layer
from keras_net2net.internals.tracking import overridden


@contextlib.contextmanager
def unrecorded(layer: Any) -> Iterator[None]:
    """Forgets the calls of sublayers that are recorded inside.

    Every call on symbolic tensors adds a node to the layer that is called; those
    of a look inside must not stay, or `layer.output` would mean something else.
    """
    held = [(one, list(one._inbound_nodes), list(one._outbound_nodes)) for one in all_layers(layer)]
    try:
        yield
    finally:
        for one, inbound, outbound in held:
            one._inbound_nodes[:] = inbound
            one._outbound_nodes[:] = outbound


def specs_by_call(layer: Any) -> contextlib.AbstractContextManager[None]:
    """Lets sublayers whose own `compute_output_spec` fails be asked by their `call`.

    A subclass may take arguments in `call` that the `compute_output_spec` that it
    inherits doesn't know; then no call of it on symbolic tensors works.
    """
    name = "compute_output_spec"
    others = _users_layers(all_layers(layer)[1:], name)
    return overridden(others, name, lambda one: functools.partial(_spec, one, getattr(one, name)))


@contextlib.contextmanager
def losses_counted(layer: Any) -> Iterator[list[Any]]:
    """Lets the code of a layer call `add_loss` on symbolic tensors, and counts the calls.

    `add_loss` refuses these. What it is given isn't part of what the layer returns.
    """
    losses: list[Any] = []
    changed = _users_layers(all_layers(layer), "add_loss")
    with overridden(changed, "add_loss", lambda _: losses.append):
        yield losses


def _users_layers(layers: Iterable[Any], name: str) -> list[Any]:
    """The layers that aren't Keras's own, where nothing stands before a method yet."""
    return [one for one in layers if not is_keras_layer(one) and name not in vars(one)]


def _spec(layer: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return own(*args, **kwargs)
    except Exception:
        with unrecorded(layer):
            made = layer.call(*args, **kwargs)
        return keras.tree.map_structure(
            lambda x: x if x is None else keras.KerasTensor(x.shape, dtype=x.dtype), made
        )


def takes_training(layer: Any) -> bool:
    """Whether a layer's `call` is told if it is training (there is no public way to ask)."""
    return bool(layer._call_has_training_arg)


def position_of_training(layer: Any) -> int | None:
    """The position of `training` among the arguments of a layer's `call`, if it has one."""
    names = list(layer.call_signature_parameters)
    return names.index("training") if "training" in names else None


@contextlib.contextmanager
def recorded_inputs(layers: Iterable[Any]) -> Iterator[dict[int, list[np.ndarray]]]:
    """Records what layers are called with inside: the first argument, by `id` of layer.

    The inside of a composite or subclassed layer makes no graph that could be run up to
    some tensor, so the layers themselves tell. What is no number yet, as inside of a
    compiled loop, isn't recorded.
    """
    record: dict[int, list[np.ndarray]] = {}
    with overridden(layers, "call", lambda one: functools.partial(_record, record, one, one.call)):
        yield record


def _record(
    record: dict[int, list[np.ndarray]], layer: Any, call: Any, *args: Any, **kw: Any
) -> Any:
    given = args[0] if args else next(iter(kw.values()), None)
    with contextlib.suppress(Exception):
        record.setdefault(id(layer), []).append(np.asarray(keras.ops.convert_to_numpy(given)))
    return call(*args, **kw)


def calls_watched(
    watchers: Iterable[tuple[Any, Callable[..., None]]],
) -> contextlib.AbstractContextManager[None]:
    """Tells with what models are called, inside others as well.

    Calls that a watcher itself makes aren't told.
    """
    watched = list(watchers)
    watch = {id(model): told for model, told in watched}
    called = functools.partial(functools.partial, _watched_call, [])
    return overridden(
        [model for model, _ in watched], "call", lambda one: called(watch[id(one)], one.call)
    )


def _watched_call(
    busy: list[Any], watch: Callable[..., None], own: Any, *args: Any, **kwargs: Any
) -> Any:
    if not busy:
        busy.append(watch)
        try:
            watch(*args, **kwargs)
        finally:
            busy.pop()
    return own(*args, **kwargs)


def mask_of(x: Any) -> Any | None:
    """The mask that a tensor carries (there is no public way to ask)."""
    return getattr(x, "_keras_mask", None)
