"""Models: their classes, their processes, and what they have compiled."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import keras

# Only these two tell which constructors make a Functional of inputs and outputs.
from keras.src.models.functional import Functional, functional_like_constructor

from keras_net2net.internals.graphs import function_of
from keras_net2net.internals.layers import sublayers


def has_no_call(model: Any) -> bool:
    """Whether a model only holds others, which a `train_step` of its own calls."""
    return type(model).call is keras.Model.call


def held_models(model: Any) -> list[Any]:
    """The Sequential and Functional models that a model holds, each once."""
    found = {id(layer): layer for layer in sublayers(model) if isinstance(layer, keras.Model)}
    return [part for part in found.values() if function_of(part) is not None]


def new_functional(like: Any, inputs: Any, outputs: Any) -> Any:
    """A model of the class of `like` over another graph.

    A class whose constructor takes inputs and outputs is constructed. One with a
    constructor of its own can't be: its arguments are unknown. Its instance is
    made as `keras.Model.__new__` makes it.
    """
    cls: Any = type(like)
    if functional_like_constructor(cls):
        return cls(inputs=inputs, outputs=outputs, name=like.name)
    made = cls.__new__(cls)
    Functional.__init__(made, inputs, outputs, name=like.name)
    return made


def new_sequential(like: Any, layers: list[Any]) -> Any:
    """A Sequential of the class of `like`, whatever its own constructor takes."""
    cls: Any = type(like)
    made = cls.__new__(cls)
    keras.Sequential.__init__(made, layers, name=like.name)
    return made


def own_attributes(model: Any) -> dict[str, Any]:
    """The public attributes of a model; on PyTorch layers among them stand apart."""
    attributes = {**vars(model), **vars(model).get("_modules", {})}
    return {name: value for name, value in attributes.items() if not name.startswith("_")}


def new_lambda(like: Any) -> Any:
    """A `Lambda` layer with the function of another one.

    Its config doesn't serve: Keras refuses to read a Python lambda back, and one
    that is read back has lost the names that it refers to.
    """
    config = keras.Layer.get_config(like)
    settings = {"output_shape": like._output_shape, "mask": like.mask}
    return type(like)(like.function, **settings, arguments=dict(like.arguments), **config)


def containers_changed(models: Iterable[Any]) -> None:
    """Lets models forget the parameters that their layers no longer have.

    On PyTorch every built model keeps a `ParameterDict` of all its variables'
    parameters; it would show, and keep alive, the old ones.
    """
    for model in models:
        if hasattr(model, "_torch_params"):
            model._track_variables()


def variable_scope(model: Any) -> contextlib.AbstractContextManager:
    """The scope in which a model's variables are made, under `tf.distribute`.

    `distribute_strategy` is set by the TensorFlow trainer and is not documented.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def process_count(model: Any) -> int:
    """How many processes train a model together, by what each engine says of itself."""
    return _processes(model)[1]


def is_first_process(model: Any) -> bool:
    """Whether this is the only process that trains a model, or the one that writes files."""
    return _processes(model)[0] == 0


def _processes(model: Any) -> tuple[int, int]:
    """The number of this process, and how many there are.

    Nobody has to say `keras.distribution.initialize` for a loop of PyTorch's own, nor
    for `tf.distribute`, so Keras doesn't know.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        distributed = sys.modules["torch"].distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    if backend == "jax":
        jax = sys.modules["jax"]
        return jax.process_index(), jax.process_count()
    resolver = getattr(getattr(model, "distribute_strategy", None), "cluster_resolver", None)
    cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
    kinds = [kind for kind in ("chief", "worker") if kind in cluster]
    tasks = [(kind, i) for kind in kinds for i in range(len(cluster[kind]))]
    mine = None if resolver is None else (resolver.task_type, resolver.task_id)
    return (tasks.index(mine), len(tasks)) if mine in tasks else (0, 1)


def sync_state(model: Any) -> None:
    """Writes the state of a running JAX epoch back into the variables.

    On JAX, `fit` carries the state beside the model inside an epoch; outside of
    one this does nothing.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def forget_functions(model: Any) -> None:
    """Drops the compiled steps of a model, and makes the training step again.

    They hold the old variables. `fit` made its training step before its loop and
    reads `train_function` at every step, so it must find one there.

    PyTorch keeps what it compiled by the code of each function, with guards, compiles it
    anew for other shapes, but only eight times (`recompile_limit`); after that, it runs
    the code as it is, for the rest of the process. What it holds of the model before a
    growth can't be used again, so that it is told to forget.
    """
    running = getattr(model, "train_function", None) is not None
    if running and keras.backend.backend() == "torch" and getattr(model, "jit_compile", False):
        import torch

        torch.compiler.reset()
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            delattr(model, name)  # or TensorFlow goes on tracking it under its name
            setattr(model, name, None)
    if running:
        model.make_train_function(force=True)
    if running and hasattr(model, "_record_training_state_sharding_spec"):
        # On JAX, Keras before 3.12 lists how all variables are laid out when `fit` starts.
        model._record_training_state_sharding_spec()
    if keras.backend.backend() == "jax" and hasattr(model, "_jax_state"):
        # The state of the last step, kept for callbacks, holds old arrays.
        model._jax_state = None
