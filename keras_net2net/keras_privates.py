"""Everything that this library touches of Keras beyond its public interface.

Keras has no public way to change a model after it was built, so growing one in
place needs some of its internals. They all stand here, each with the reason,
so that a new version of Keras is checked in one file. Seen working from Keras
3.10 to 3.15 on TensorFlow, JAX and PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

# The cell of the ConvLSTM layers has a rule as other cells have, and no public name.
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # noqa: F401

# `map_graph` sorts the nodes between inputs and outputs by depth. A `Function`
# stores what it returns, and has no way to take a changed graph.
from keras.src.ops.function import map_graph

# `Node` records one call of a layer. There is no public way to make a node
# without running shape inference again, which is the slow part of retracing.
from keras.src.ops.node import Node

# `save_weights` decides the paths in its file while it walks over a model; that walk is
# the only one who knows them.
from keras.src.saving import saving_lib
from keras.src.saving.saving_lib import H5IOStore

# `KerasTensor._shape` is read-only in public. Widening changes the sizes on the
# tensors of a graph and nothing else, so relabelling them replaces retracing.


def set_shape(tensor: Any, shape: Sequence[int | None]) -> None:
    """Relabels a symbolic tensor."""
    tensor._shape = tuple(shape)


# -- reading graphs ------------------------------------------------------------


def function_of(model: Any) -> Any | None:
    """The `keras.Function` that holds a model's graph, or `None`.

    A Functional model is one itself. A Sequential keeps one in `_functional`,
    which has no public name.
    """
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) else None


def nodes_of(function: Any) -> list[Any]:
    """The nodes of a graph in the order in which Keras runs them.

    `Function` offers its operations, but not its nodes: which call of a shared
    layer belongs to the graph, and on what, is only in `_nodes_by_depth`.
    """
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def nodes_of_layer(layer: Any) -> list[Any]:
    """The nodes that record the calls of a layer; Keras offers `layer.output` for one alone."""
    return list(layer._inbound_nodes)


def structures_of(function: Any) -> tuple[Any, Any]:
    """The nested inputs and outputs of a graph, as they were given.

    `inputs` and `outputs` are flat in public; a call needs the structure.
    """
    return function._inputs_struct, function._outputs_struct


def is_keras_operation(operation: Any) -> bool:
    """Whether an operation is one of Keras's own `keras.ops`.

    Their classes aren't exported; only the functions are. A user's class of the
    same name must not be taken for one.
    """
    return type(operation).__module__.startswith("keras.src.ops.")


def nodes_between(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The nodes from symbolic inputs to symbolic outputs, in the order in which they run."""
    by_depth = map_graph(list(inputs), list(outputs))[1]
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


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


@contextlib.contextmanager
def specs_by_call(layer: Any) -> Iterator[None]:
    """Lets sublayers whose own `compute_output_spec` fails be asked by their `call`.

    A subclass may take arguments in `call` that the `compute_output_spec` that it
    inherits doesn't know; then no call of it on symbolic tensors works.
    """
    changed = []
    for one in all_layers(layer)[1:]:
        if is_keras_layer(one) or "compute_output_spec" in vars(one):
            continue
        vars(one)["compute_output_spec"] = functools.partial(_spec, one, one.compute_output_spec)
        changed.append(one)
    try:
        yield
    finally:
        for one in changed:
            del vars(one)["compute_output_spec"]


@contextlib.contextmanager
def losses_counted(layer: Any) -> Iterator[list[Any]]:
    """Lets the code of a layer call `add_loss` on symbolic tensors, and counts the calls.

    `add_loss` refuses these. What it is given isn't part of what the layer returns.
    """
    losses: list[Any] = []
    changed = [one for one in all_layers(layer) if not is_keras_layer(one)]
    changed = [one for one in changed if "add_loss" not in vars(one)]
    for one in changed:
        vars(one)["add_loss"] = losses.append
    try:
        yield losses
    finally:
        for one in changed:
            del vars(one)["add_loss"]


def _spec(layer: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return own(*args, **kwargs)
    except Exception:
        with unrecorded(layer):
            made = layer.call(*args, **kwargs)
        return keras.tree.map_structure(
            lambda x: x if x is None else keras.KerasTensor(x.shape, dtype=x.dtype), made
        )


def all_layers(layer: Any) -> list[Any]:
    """A layer, and all layers in it."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def takes_training(layer: Any) -> bool:
    """Whether a layer's `call` is told if it is training (there is no public way to ask)."""
    return bool(layer._call_has_training_arg)


def position_of_training(layer: Any) -> int | None:
    """The position of `training` among the arguments of a layer's `call`, if it has one."""
    names = list(layer.call_signature_parameters)
    return names.index("training") if "training" in names else None


def is_keras_layer(layer: Any) -> bool:
    """Whether a layer is one of Keras's own, whose classes say all about them."""
    return type(layer).__module__.startswith("keras.src.layers.")


def is_keras_regularizer(penalty: Any) -> bool:
    """Whether a regularizer is one of Keras's own, which take tensors of all sizes."""
    return type(penalty).__module__.startswith("keras.src.regularizers.")


def attention_has_one_size() -> bool:
    """Whether Keras's attention computes only with keys and values of one size.

    On JAX it calls JAX's own attention, which does; no layer says so.
    """
    return bool(keras.backend.backend() == "jax")


@contextlib.contextmanager
def recorded_inputs(layers: Iterable[Any]) -> Iterator[dict[int, list[np.ndarray]]]:
    """Records what layers are called with inside: the first argument, by `id` of layer.

    The inside of a composite or subclassed layer makes no graph that could be run up to
    some tensor, so the layers themselves tell. What is no number yet, as inside of a
    compiled loop, isn't recorded.
    """
    record: dict[int, list[np.ndarray]] = {}
    changed = []
    for layer in layers:
        vars(layer)["call"] = functools.partial(_record, record, layer, layer.call)
        changed.append(layer)
    try:
        yield record
    finally:
        for layer in changed:
            del vars(layer)["call"]


def _record(
    record: dict[int, list[np.ndarray]], layer: Any, call: Any, *args: Any, **kw: Any
) -> Any:
    given = args[0] if args else next(iter(kw.values()), None)
    with contextlib.suppress(Exception):
        record.setdefault(id(layer), []).append(np.asarray(keras.ops.convert_to_numpy(given)))
    return call(*args, **kw)


def has_build(layer: Any) -> bool:
    """Whether a layer's class has a `build` of its own, and so may make weights."""
    return type(layer).build is not keras.Layer.build


# Three classes of operations aren't named as their functions are.
_OTHERWISE_NAMED = {
    "batchnorm": "batchnormalization",
    "layernorm": "layernormalization",
    "rmsnorm": "rmsnormalization",
}


def operation_key(name: str) -> str:
    """What the name of a `keras.ops` function and that of its class have in common.

    A function such as `leaky_relu` records an instance of the class `LeakyRelu`;
    only the names tell that they belong together.
    """
    key = name.replace("_", "").lower()
    return _OTHERWISE_NAMED.get(key, key)


def operation_classes() -> dict[str, type]:
    """The classes of all operations that a `keras.ops` function may record, by key."""
    return {
        operation_key(name): cls
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("keras.src.ops.")
        for name, cls in vars(module).items()
        if isinstance(cls, type)
        and issubclass(cls, keras.Operation)
        and cls.__module__ == module.__name__
    }


def set_setting(operation: Any, key: str, value: Any) -> None:
    """Gives a layer or operation another value of a setting.

    An operation, or a layer without a `get_config` of its own, is saved with what
    its constructor was given, which Keras keeps beside the attributes.
    """
    setattr(operation, key, value)
    given = getattr(operation, "_auto_config", None)
    if given is not None and key in given.config:
        changed = type(given)(**{**given.config, key: value})
        vars(operation)["_auto_config"] = changed


def is_called_once(operation: Any) -> bool:
    """Whether there is one record of a call of the operation."""
    return len(operation._inbound_nodes) == 1


def set_arguments(node: Any, args: tuple, kwargs: dict) -> None:
    """Gives a recorded call other arguments, of which the tensors are the same."""
    node.arguments.args, node.arguments.kwargs = args, kwargs
    node.arguments._flat_arguments = keras.tree.flatten((args, kwargs))


@contextlib.contextmanager
def calls_watched(watchers: Iterable[tuple[Any, Callable[..., None]]]) -> Iterator[None]:
    """Tells with what models are called, inside others as well.

    Calls that a watcher itself makes aren't told. Keras calls `self.call`, which an
    attribute of the instance can stand before; there is no hook for it. The attribute is
    set past Keras, which would track it.
    """
    watched = []
    busy: list[Any] = []
    try:
        for model, watch in watchers:
            vars(model)["call"] = functools.partial(_watched_call, busy, watch, model.call)
            watched.append(model)
        yield
    finally:
        for model in watched:
            del vars(model)["call"]


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


# -- changing graphs -----------------------------------------------------------


def new_tensor(like: Any, shape: Sequence[int | None], same_name: bool) -> Any:
    """A symbolic tensor of another shape, with the dtype (and name) of `like`."""
    return keras.KerasTensor(
        tuple(shape), dtype=like.dtype, sparse=like.sparse, name=like.name if same_name else None
    )


def input_layer(tensor: Any) -> Any | None:
    """The `InputLayer` that a symbolic tensor comes from, or `None`.

    A tensor's history is the only link from a model's input to the layer that
    declares its shape.
    """
    operation = tensor._keras_history.operation
    return operation if isinstance(operation, keras.layers.InputLayer) else None


def maker_of(tensor: Any) -> Any:
    """The layer or operation that made a symbolic tensor, which only its history tells."""
    return tensor._keras_history.operation


def record_call(
    operation: Any, args: tuple, kwargs: dict, outputs: list[Any], replaces: Any | None
) -> Any:
    """Records a call of `operation`, in the place of an older call where there is one.

    Taking the old node's place in `_inbound_nodes` keeps `layer.output` right,
    the numbering of nodes stable, and the number of nodes from growing.
    """
    node = Node(operation, call_args=args, call_kwargs=kwargs, outputs=outputs)
    if replaces is not None:
        nodes = operation._inbound_nodes
        nodes.pop()
        at = nodes.index(replaces)
        nodes[at] = node
        for i, tensor in enumerate(node.outputs):
            tensor._keras_history = type(tensor._keras_history)(operation, at, i)
        for tensor in replaces.input_tensors:
            history = getattr(tensor, "_keras_history", None)
            if history is not None and history.operation is not None:
                calls = history.operation._outbound_nodes
                if replaces in calls:
                    calls.remove(replaces)
    return node


def set_graph(function: Any, outputs: Any) -> None:
    """Gives a `Function` new outputs, and with them a new graph.

    `Function.__init__` would do it, but on a live model it wipes the compile
    state; so the attributes that it sets from the graph are set here.
    """
    nodes, nodes_by_depth, operations, operations_by_depth = map_graph(
        function._inputs, keras.tree.flatten(outputs)
    )
    with keras_untracked():
        function._outputs_struct = keras.tree.map_structure(lambda x: x, outputs)
        function._outputs = keras.tree.flatten(outputs)
        function._nodes = nodes
        function._nodes_by_depth = nodes_by_depth
        function._operations = operations
        function._operations_by_depth = operations_by_depth


@contextlib.contextmanager
def keras_untracked() -> Iterator[None]:
    """Keeps Keras from wrapping and tracking attributes that are set inside."""
    from keras.src.utils.tracking import DotNotTrackScope

    with DotNotTrackScope():
        yield


def track_layers(model: Any, layers: Sequence[Any]) -> None:
    """Makes `layers` the first of the layers that a model tracks, in this order.

    A model's weights, and so the order in which an optimizer's slots are saved,
    follow `_layers`. A loaded model has its layers in the order of its graph, so
    an inserted layer must stand there too, not at the end.
    """
    rest = [layer for layer in model._layers if all(layer is not other for other in layers)]
    _set_layers(model, [*layers, *rest])


def _set_layers(model: Any, layers: Sequence[Any]) -> None:
    model._tracker.stored_ids["layers"].update(map(id, layers))
    held = model._layers
    if unwrapped(held) is held:
        list.__setitem__(held, slice(None), layers)  # the list itself is the tracker's, too
    else:
        # Up to Keras 3.10 at least, a Functional model has a list of its own. TensorFlow
        # wraps it, and refuses to save a wrapper whose list has changed: it gets a new one.
        with keras_untracked():
            model._layers = list(layers)


def insert_into_sequential(model: Any, function: Any) -> None:
    """Puts the layers of a Sequential's graph into its list of layers, in order.

    `add` would append at the end and rebuild everything with random weights.
    """
    layers = [op for op in function.operations if isinstance(op, keras.Layer)]
    if not isinstance(model._layers[0], keras.layers.InputLayer):
        layers = [op for op in layers if not isinstance(op, keras.layers.InputLayer)]
    _set_layers(model, layers)


def set_input_shape(operation: Any, shape: Sequence[int | None]) -> None:
    """Changes the shape that an `InputLayer` declares (`batch_shape` is read-only)."""
    operation._batch_shape = tuple(shape)


# -- changing layers -----------------------------------------------------------


def name_like(layer: Any, original: Any) -> None:
    """Gives what is in a copied layer the names that it has in the original.

    Layers and variables that their code doesn't name are numbered on by Keras; a plan
    says beforehand what the weights of a copy are called.
    """
    pairs = list(zip(all_layers(layer)[1:], all_layers(original)[1:], strict=False))
    for mine, other in pairs:
        if type(mine) is type(other):
            mine.name = other.name
    for mine, other in [(layer, original), *pairs]:
        names = [variable.name for variable in own_variables(other)]
        for variable, name in zip(own_variables(mine), names, strict=False):
            variable._name = name


def own_variables(layer: Any) -> list[Any]:
    """The variables of a layer itself, without its sublayers and random seeds.

    `layer.variables` mixes them all; a rule speaks of the layer's own.
    """
    seen: dict[int, Any] = {}
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        seen.setdefault(id(variable), variable)
    return list(seen.values())


def own_trainable(layer: Any) -> list[Any]:
    """The variables of a layer itself that are trained while it is trainable."""
    return list(layer._trainable_variables)


def named_variables(layer: Any) -> dict[str, Any]:
    """The variables of a layer itself by name, and the states that a recurrent one keeps.

    Variables that share a name get a number.
    """
    named: dict[str, Any] = {}
    for variable in own_variables(layer):
        name, number = variable.name, 1
        while name in named:
            number += 1
            name = f"{variable.name}_{number}"
        named[name] = variable
    return {**named, **recurrent_states(layer)}


def recurrent_states(layer: Any) -> dict[str, Any]:
    """The states that a recurrent layer keeps from batch to batch.

    They are all called `rnn_state`, and aren't tracked: no weights, no parameters.
    """
    states = getattr(layer, "states", None)
    if states is None or not (isinstance(layer, keras.layers.RNN) or hasattr(layer, "cell")):
        return {}
    flat = enumerate(keras.tree.flatten(states))
    return {f"state_{i}": state for i, state in flat if isinstance(state, keras.Variable)}


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer holds (`_layers` has no public name on a `Layer`)."""
    return list(layer._layers)


def has_no_call(model: Any) -> bool:
    """Whether a model only holds others, which a `train_step` of its own calls."""
    return type(model).call is keras.Model.call


def held_models(model: Any) -> list[Any]:
    """The Sequential and Functional models that a model holds, each once."""
    found = {id(layer): layer for layer in sublayers(model) if isinstance(layer, keras.Model)}
    return [part for part in found.values() if function_of(part) is not None]


def held_optimizers(model: Any) -> list[Any]:
    """The optimizers that a model holds beside the one that it was compiled with.

    A model with a `train_step` of its own may have one for each of its parts.
    """
    found = {}
    for value in vars(model).values():
        items = value.values() if isinstance(value, dict) else value
        for one in items if isinstance(value, (list, tuple, dict)) else [value]:
            if isinstance(one, keras.optimizers.Optimizer):
                found[id(one)] = one
    main = getattr(model, "optimizer", None)
    inner = [] if main is None else optimizer_parts(main)
    return [one for one in found.values() if not any(one is part for part in inner)]


def build_shapes(layer: Any) -> dict[str, Any] | None:
    """The shapes that a layer was built with, by the argument names of `build`."""
    return layer._build_shapes_dict


def recorded_arguments(layer: Any) -> Any | None:
    """What Keras recorded of the arguments that a layer was constructed with, in `config`.

    It is what `get_config` returns for a class without one of its own.
    """
    recorded = getattr(layer, "_auto_config", None)
    return recorded if isinstance(getattr(recorded, "config", None), dict) else None


def set_build_shapes(layer: Any, shapes: dict[str, Any]) -> None:
    """Records other build shapes; they are written into saved files."""
    layer._build_shapes_dict = shapes


def rebuild(layer: Any, shapes: dict[str, Any], variable_for: Callable[..., Any]) -> None:
    """Runs a built layer's `build` again, with its own variables handed back to it.

    `build` derives more than variables from the sizes (input specs, axes,
    broadcast shapes), so it is the layer's own code that brings these up to date.
    The tracker is locked after a first build, and the path of a layer is that of
    the scope in which it is built: neither may change here.
    """
    path, parent = layer._path, layer._parent_path
    layer._tracker.unlock()
    layer.__dict__["add_weight"] = variable_for
    try:
        layer.build(**shapes)
    finally:
        del layer.__dict__["add_weight"]
        layer._tracker.lock()
        layer._path, layer._parent_path = path, parent


def build_with_values(layer: Any, shapes: dict[str, Any], value_for: Callable[..., Any]) -> bool:
    """Builds a new layer whose weights start at given values.

    Random initialisers whose values are then overwritten are what makes the
    by-hand way slow, so each weight is created straight from its value.

    Returns:
        Whether all of them were: a weight that its layer doesn't name can't be.
    """
    add_weight = layer.add_weight
    all_given = True

    def add_given(*args: Any, **kwargs: Any) -> Any:
        nonlocal all_given
        name = kwargs.get("name")
        value = None if name is None else value_for(name)
        if value is None:
            all_given = False
        else:
            kwargs["initializer"] = lambda shape, dtype=None, **_: keras.ops.convert_to_tensor(
                value, dtype=dtype
            )
        return add_weight(*args, **kwargs)

    layer.__dict__["add_weight"] = add_given
    try:
        layer.build(**shapes)
    finally:
        del layer.__dict__["add_weight"]
    return all_given


def set_variable(variable: Any, value: Any) -> None:
    """Gives a variable a value of another shape.

    `assign` wants the old shape. `_initialize` is what a new variable runs on
    each backend, with the layout that a distribution gave it, so the variable
    keeps its identity, name, regularizer and constraint.
    """
    value = variable._convert_to_tensor(value, dtype=variable._dtype)
    trainable = variable._trainable
    if keras.backend.backend() == "tensorflow":
        # Its variables are watched, or not, as they were made: one that is frozen now
        # must have a gradient once it no longer is.
        variable._trainable = bool(variable._value.trainable)
    try:
        variable._initialize(value)
    finally:
        variable._trainable = trainable
    if keras.backend.backend() == "tensorflow" and hasattr(variable._value, "values"):
        # Under `tf.distribute` all workers are given the first one's value when a variable
        # is made. What is each worker's own, as moving statistics are, has to stay so.
        variable._value.assign(value)
    variable._shape = tuple(value.shape)
    variable._ndim = len(variable._shape)


def read_variable(variable: Any) -> np.ndarray:
    """The value of a variable as an array, without a copy where the backend allows it.

    `variable.numpy()` always copies, and under mixed precision may cast.
    """
    value = variable._value
    if keras.backend.backend() == "torch":
        value = value.detach()
        return (
            value.cpu().numpy() if value.dtype.itemsize != 2 else keras.ops.convert_to_numpy(value)
        )
    if keras.backend.backend() == "tensorflow" and hasattr(value, "read_value"):
        value = value.read_value()
    return np.asarray(value)


# -- new models ----------------------------------------------------------------


def new_functional(like: Any, inputs: Any, outputs: Any) -> Any:
    """A model of the class of `like` over another graph.

    A class whose constructor takes inputs and outputs is constructed. One with a
    constructor of its own can't be: its arguments are unknown. Its instance is
    made as `keras.Model.__new__` makes it.
    """
    from keras.src.models.functional import Functional, functional_like_constructor

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


# -- models and optimizers -----------------------------------------------------


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
    if keras.backend.backend() == "jax" and hasattr(model, "_jax_state"):
        # The state of the last step, kept for callbacks, holds old arrays.
        model._jax_state = None


def optimizer_parts(optimizer: Any) -> list[Any]:
    """An optimizer, and those inside it: `LossScaleOptimizer` and `MultiOptimizer` hold others.

    The one of the first is public, those of the second are so only as a list that
    it doesn't have before Keras 3.13.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    held = [inner] if inner is not None else getattr(optimizer, "_inner_optimizers", ())
    return [optimizer, *(part for one in held for part in optimizer_parts(one))]


def optimizer_variables(optimizer: Any) -> list[Any] | None:
    """The model variables that an optimizer was built for, or `None`.

    An optimizer offers its own variables, not those that it updates. One that holds
    another keeps no list of them up to Keras 3.10 at least: the inner one does.
    """
    if not optimizer.built:
        return None
    known = {id(v): v for part in optimizer_parts(optimizer) for v in part._trainable_variables}
    return list(known.values())


def reset_optimizer(optimizer: Any, variables: list[Any]) -> None:
    """Builds an optimizer again, for other variables, keeping its progress.

    Keras says "recreate a new optimizer instance", but the user holds this one.
    Its own `build` makes the new slots. The step count and the learning rate are
    variables made by the constructor: they stay, all other variables go.
    """
    parts = optimizer_parts(optimizer)
    names = ("step_counter", "dynamic_scale") if hasattr(optimizer, "dynamic_scale") else ()
    kept = {name: getattr(optimizer, name) for name in names}
    for part in parts:  # `build` of the outer one builds the inner ones
        _forget_slots(part)
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(_zeros_uncompiled(part))
        optimizer.build(variables)
    for name, variable in kept.items():
        getattr(optimizer, name).assign(keras.ops.convert_to_tensor(variable))
    for part in parts:
        if part.built and part.use_ema:
            # They start at zero, and the first step makes them the weights; but it has
            # been. What is left of the zeros would end up in the model.
            for average, variable in zip(
                part._model_variables_moving_average, part._trainable_variables, strict=True
            ):
                if average is not None:
                    average.assign(keras.ops.copy(variable))  # JAX would share the buffer


@contextlib.contextmanager
def _zeros_uncompiled(optimizer: Any) -> Iterator[None]:
    """Lets slots that start at zero do so without a program of their own.

    JAX compiles one that makes zeros for each shape, and keeps it for good: megabytes,
    and tens of milliseconds, for every growth. On a CPU an array of NumPy costs less; on
    another device, where it would have to be sent there, the program is the lesser evil.
    """
    if keras.backend.backend() != "jax" or not _on_cpu():
        yield
        return
    made = optimizer.add_variable

    def add_variable(shape: Any, initializer: Any = "zeros", *args: Any, **kwargs: Any) -> Any:
        return made(shape, _zeros if initializer == "zeros" else initializer, *args, **kwargs)

    vars(optimizer)["add_variable"] = add_variable  # the attribute isn't tracked
    try:
        yield
    finally:
        del vars(optimizer)["add_variable"]


def _on_cpu() -> bool:
    import jax

    return bool(jax.default_backend() == "cpu")


def _zeros(shape: Any, dtype: Any = None) -> Any:
    import jax

    # `device_put` compiles nothing, `jax.numpy.asarray` does; its dtypes know bfloat16.
    return jax.device_put(np.zeros(shape, jax.numpy.dtype(dtype)))


def _forget_slots(optimizer: Any) -> None:
    """Leaves an optimizer as its constructor made it, but for the progress."""
    progress = _progress(optimizer)
    _track(
        optimizer,
        [v for v in optimizer._variables if any(v is kept for kept in progress)],
    )
    optimizer._trainable_variables_indices = {}
    optimizer.built = False


def _progress(optimizer: Any) -> list[Any]:
    """The variables that an optimizer's constructor makes."""
    rate = optimizer._learning_rate
    return [optimizer._iterations, *([rate] if isinstance(rate, keras.Variable) else [])]


def _track(optimizer: Any, variables: list[Any]) -> None:
    """Gives an optimizer another list of its variables.

    The list is a new one. TensorFlow wraps it, keeps a copy, and refuses to export a
    list from which something was removed.
    """
    tracker = optimizer._tracker
    with keras_untracked():
        optimizer._variables = variables
    is_variable, _ = tracker.config["variables"]
    tracker.config["variables"] = (is_variable, optimizer._variables)
    tracker.stored_ids["variables"] = set(map(id, optimizer._variables))


def steps_done(optimizer: Any) -> int:
    """The number of steps of an optimizer, or of the innermost of several."""
    return steps_of(optimizer_parts(optimizer)[-1])


def set_steps_done(optimizer: Any, steps: int) -> None:
    """Puts an optimizer forward: `iterations` can't be set in public with accumulation."""
    for part in optimizer_parts(optimizer):
        part._iterations.assign(steps)


def learning_rate_of(optimizer: Any) -> Any:
    """The learning rate as the optimizer holds it: a variable, a schedule or a callable.

    `optimizer.learning_rate` evaluates a schedule at the current step.
    """
    return optimizer._learning_rate


def set_learning_rate(optimizer: Any, rate: Any) -> None:
    """Replaces a learning rate by one of any kind.

    Keras's setter refuses a number in the place of a schedule. A number is a variable,
    which is tracked behind the number of iterations, where a loaded optimizer has it.
    """
    held = optimizer._learning_rate
    if not isinstance(rate, float):
        if isinstance(held, keras.Variable):
            _track(optimizer, [v for v in optimizer._variables if v is not held])
        optimizer._learning_rate = rate
        return
    if isinstance(held, keras.Variable):
        held.assign(rate)
        return
    with keras.name_scope(optimizer.name, caller=optimizer):
        made = keras.Variable(
            rate,
            name="learning_rate",
            dtype=keras.config.floatx(),
            trainable=False,
            aggregation="only_first_replica",
        )
    with keras_untracked():
        optimizer._learning_rate = made
    rest = [v for v in optimizer._variables if v is not optimizer._iterations]
    _track(optimizer, [optimizer._iterations, made, *rest])


def steps_of(optimizer: Any) -> int:
    """The number of steps as a schedule is told: with accumulation, of all batches."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


def without_decay(optimizer: Any, variables: Iterable[Any]) -> list[Any]:
    """The variables that a user excluded from weight decay, one by one.

    Only their keys are kept, and on TensorFlow that of a grown variable is another.
    """
    keys = getattr(optimizer, "_exclude_from_weight_decay", None)
    return [v for v in variables if optimizer._var_key(v) in keys] if keys else []


def exclude_from_decay(optimizer: Any, variables: Iterable[Any]) -> None:
    """Excludes variables from weight decay, beside those that already are.

    Keras refuses to do so once an optimizer is built, and remembers what it decided.
    """
    known = getattr(optimizer, "_exclude_from_weight_decay", None)
    if known is not None:
        keys = {optimizer._var_key(variable) for variable in variables}
        optimizer._exclude_from_weight_decay = known | keys
    vars(optimizer).pop("_exclude_from_weight_decay_cache", None)


def copy_optimizer_state(source: Any, target: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Gives an optimizer of the same configuration the state of another one.

    Args:
        source: The optimizer.
        target: The one that gets its state.
        pairs: Each variable of the one model, with that of the other.
    """
    others = {id(one): other for one, other in pairs}
    known = optimizer_variables(source)
    if known is not None:
        reset_optimizer(target, [others[id(variable)] for variable in known])
    for one, other in zip(optimizer_parts(source), optimizer_parts(target), strict=True):
        if hasattr(one, "_exclude_from_weight_decay"):
            # Neither is part of the configuration.
            other._exclude_from_weight_decay = set()
            other._exclude_from_weight_decay_pattern = one._exclude_from_weight_decay_pattern
            excluded = without_decay(one, [variable for variable, _ in pairs])
            exclude_from_decay(other, [others[id(variable)] for variable in excluded])
    for one, other in zip(source.variables, target.variables, strict=known is not None):
        other.assign(keras.ops.copy(one))  # JAX would share the buffer


# -- the slots of optimizers ---------------------------------------------------

WEIGHT = "weight"  # a slot that is a weight itself: an average of weights, say
DERIVED = "derived"  # one that follows from other slots


@dataclasses.dataclass(frozen=True)
class SlotKind:
    """What a slot holds.

    Args:
        power: The power of the gradient that it goes with: 1 for a mean of gradients,
            2 for one of their squares, 0 for one of updates, which don't depend on the
            gradients' scale. Or `WEIGHT`, or `DERIVED`.
        start: The optimizer's attribute that says what it starts at. Defaults to
            `None`: zero.
    """

    power: int | str
    start: str | None = None


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable that an optimizer keeps for a variable of the model.

    Args:
        owner: The variable of the model; `None` for a number for all of them.
        name: What it is called, the same for all variables.
        variable: The optimizer's variable.
        kind: What it holds; `None` if that isn't known.
    """

    owner: Any
    name: str
    variable: Any
    kind: SlotKind | None


_FIRST, _SECOND, _UPDATE = SlotKind(1), SlotKind(2), SlotKind(0)
_SUM = SlotKind(2, "initial_accumulator_value")

# By the names of Keras's classes and of their attributes, which are lists in the order
# of the model's variables. What is in them is nowhere said but in `update_step`.
_KINDS: dict[str, dict[str, SlotKind]] = {
    "BaseOptimizer": {
        "_model_variables_moving_average": SlotKind(WEIGHT),
        "_accumulated_gradients": _FIRST,
    },
    "SGD": {"momentums": _FIRST},
    "RMSprop": {"_velocities": _SECOND, "_momentums": _UPDATE, "_average_gradients": _FIRST},
    "Adam": {"_momentums": _FIRST, "_velocities": _SECOND, "_velocity_hats": _SECOND},
    "Adamax": {"_m": _FIRST, "_u": _FIRST},
    "Adagrad": {"_accumulators": _SUM},
    "Adadelta": {"_accumulated_grads": _SECOND, "_accumulated_delta_vars": _UPDATE},
    "Nadam": {"_momentums": _FIRST, "_velocities": _SECOND},
    "Ftrl": {"_accumulators": _SUM, "_linears": _FIRST},
    "Lion": {"_momentums": _FIRST},
    "Adafactor": {"_v": _SECOND, "_r": SlotKind(DERIVED), "_c": SlotKind(DERIVED)},
    "Lamb": {"_momentums": _FIRST, "_velocities": _SECOND},
    "Muon": {"momentums": _FIRST, "adam_velocities": _SECOND},
    "ScheduleFreeAdamW": {"_momentums": SlotKind(WEIGHT), "_velocities": _SECOND},
}
_NUMBERS = {"Nadam": ("_u_product",)}
# Slots of other optimizers, by the names that Keras gives such ones.
_BY_NAME = {
    "momentum": _FIRST,
    "average_gradient": _FIRST,
    "velocity": _SECOND,
    "velocity_hat": _SECOND,
}


def slots_of(optimizer: Any) -> list[Slot]:
    """All variables that an optimizer keeps beside its progress, with what they hold.

    No optimizer offers which variable belongs to which. For Keras's own classes and
    those derived from them the table says where they are. Another one's are found by
    their paths, which begin with that of the model's variable.
    """
    owners = optimizer._trainable_variables
    found: list[Slot] = []
    known = set(map(id, _progress(optimizer)))
    for cls in reversed(type(optimizer).__mro__):
        if not cls.__module__.startswith("keras.src.optimizers."):
            continue
        for name, kind in _KINDS.get(cls.__name__, {}).items():
            held = getattr(optimizer, name, None) or ()
            for owner, variable in zip(owners, held, strict=False):
                known.add(id(variable))
                if variable is not None and (variable.ndim or not owner.ndim):
                    found.append(Slot(owner, name, variable, kind))
        for name in _NUMBERS.get(cls.__name__, ()):
            number = getattr(optimizer, name)
            known.add(id(number))
            found.append(Slot(None, name, number, None))
    prefixes = sorted(((f"{v.path.replace('/', '_')}_", v) for v in owners), key=_longest)
    for variable in optimizer._variables:
        if id(variable) in known:
            continue
        for prefix, owner in prefixes:
            if variable.name.startswith(prefix):
                name = variable.name.removeprefix(prefix)
                found.append(Slot(owner, name, variable, _BY_NAME.get(name)))
                break
        else:
            found.append(Slot(None, variable.path, variable, None))
    return found


def _longest(entry: tuple[str, Any]) -> int:
    return -len(entry[0])


# -- the data of a running `fit` -----------------------------------------------


def fit_batches(model: Any, samples: int, most: int = 8) -> list[Any]:
    """The first batches of the `fit` that a callback is called from, as its steps get them.

    `fit` keeps its data in a local variable, `epoch_iterator`, on all backends, and tells
    callbacks nothing of it: the frames of the callers are looked through. The iterator
    itself isn't touched, so that no batch is lost: what feeds it is asked again. (A
    shuffled `tf.data.Dataset` then goes on in another random order.)

    Args:
        model: The model.
        samples: The number of samples after which there are enough batches.
        most: The largest number of batches. Defaults to `8`.

    Returns:
        The batches, each `(x, y, ...)`; none if they can't be had.
    """
    iterator = _epoch_iterator(model)
    if iterator is None:
        return []
    found: list[Any] = []
    seen = 0
    try:
        for batch in _first_batches(iterator.data_adapter):
            batch = tuple(batch) if isinstance(batch, list) else batch  # as Keras takes it
            found.append(keras.tree.map_structure(np.asarray, batch))
            seen += len(keras.tree.flatten(found[-1])[0])
            if seen >= samples or len(found) == most:
                break
    except Exception:  # data that can't be asked twice: there is none to be had
        return []
    return found


def _epoch_iterator(model: Any) -> Any | None:
    frame: Any = sys._getframe(1)
    while frame is not None:
        known = frame.f_locals if frame.f_code.co_name == "fit" else {}
        if known.get("self") is model and "epoch_iterator" in known:
            return known["epoch_iterator"]
        frame = frame.f_back
    return None


def _first_batches(adapter: Any) -> Iterator[Any]:
    """The first batches of an adapter of Keras, without taking them from it."""
    kept = getattr(adapter, "_first_batches", None)
    if kept is not None:  # a generator's, which Keras took from it to see their shapes
        yield from kept
        return
    inputs = getattr(adapter, "_inputs", None)
    if inputs is not None:  # arrays
        size = adapter.batch_size
        for at in range(0, adapter.num_batches * size, size):
            yield keras.tree.map_structure(lambda x, at=at: x[at : at + size], inputs)
        return
    indexed = getattr(adapter, "py_dataset", None)
    if indexed is not None:
        for at in range(indexed.num_batches or 8):
            yield adapter._standardize_batch(indexed[at])
        return
    loader = getattr(adapter, "_dataloader", None)
    if loader is not None:  # its order is drawn from PyTorch's global state
        import torch

        state = torch.get_rng_state()
        try:
            yield from loader
        finally:
            torch.set_rng_state(state)
        return
    yield from adapter._dataset  # of TensorFlow or Grain: each iteration starts again


# -- callbacks -------------------------------------------------------------------


def running_lists() -> Iterator[Any]:
    """The `CallbackList`s that are calling their callbacks, the innermost first.

    Keras tells a callback its model, and nothing of the other callbacks: only the
    `CallbackList` that is calling knows them, and it is nowhere but on the stack. The
    locals of no other frame are read, for reading them keeps alive what they hold.
    """
    of_lists = vars(sys.modules[keras.callbacks.CallbackList.__module__])
    frame: Any = sys._getframe(1)
    while frame is not None:
        holder = frame.f_locals.get("self") if frame.f_globals is of_lists else None
        if isinstance(holder, keras.callbacks.CallbackList):
            yield holder
        frame = frame.f_back


def running_callbacks() -> list[Any]:
    """The callbacks of the `fit` that runs, in order, if one of them is calling."""
    found: dict[int, Any] = {}
    for holder in running_lists():
        # Further out stands the list that holds this one, or that of a `fit` around it.
        found = {id(one): one for one in flat_callbacks(holder)} | found
    return list(found.values())


def callbacks_beside(callback: Any) -> list[Any]:
    """The callbacks of the one list that is just now telling `callback` its model."""
    for holder in running_lists():
        if any(one is callback for one in holder.callbacks):
            return list(holder.callbacks)
    return []


def flat_callbacks(holder: Any) -> list[Any]:
    """The callbacks of a `CallbackList`, with those of lists in it in their place."""
    return [
        one
        for callback in holder.callbacks
        for one in (
            flat_callbacks(callback)
            if isinstance(callback, keras.callbacks.CallbackList)
            else [callback]
        )
    ]


def has_swapped(callback: Any) -> bool:
    """Whether a `SwapEMAWeights` has put the averages into its model; only it knows."""
    return isinstance(callback, keras.callbacks.SwapEMAWeights) and callback._ema_weights_in_model


def set_swapped(callback: Any, swapped: bool) -> None:
    """Tells a `SwapEMAWeights` whether the averages are in its model."""
    callback._ema_weights_in_model = swapped


def swap_averages(optimizer: Any) -> None:
    """Exchanges a model's weights and their averages, bit for bit.

    `SwapEMAWeights` does so by sums and differences on TensorFlow, which round.
    """
    for part in optimizer_parts(optimizer):
        if not part.built or not getattr(part, "use_ema", False):
            continue
        pairs = zip(part._trainable_variables, part._model_variables_moving_average, strict=True)
        for variable, average in pairs:
            if average is not None:
                held = keras.ops.copy(variable.value)
                variable.assign(average.value)
                average.assign(held)


def write_growth(callback: Any, epoch: int, parameters: int, headline: str | None) -> None:
    """Writes the size of a model, and a growth, where a `TensorBoard` writes its training.

    Its writer has no public name, and a second one would write a file of its own.
    """
    with callback._train_writer.as_default():
        callback.summary.scalar("params", parameters, step=epoch)
        if headline is not None:
            callback.summary.text("growth", headline, step=epoch)


def is_better_upwards(model: Any, monitor: str) -> bool | None:
    """Whether a metric is better the larger it is; `None` if nobody knows.

    Keras's own callbacks ask the metric for its `_direction`, which has no public name.
    """
    name = monitor.removeprefix("val_")
    if name == "loss":
        return False
    metrics = list(model.metrics)
    while metrics:
        metric = metrics.pop()
        held = getattr(metric, "metrics", None)
        if isinstance(held, (list, tuple)):
            metrics += held
        elif metric.name == name and getattr(metric, "_direction", None) in ("up", "down"):
            return bool(metric._direction == "up")
    return None


# -- saved weights, and the callback that backs them up -------------------------


class _Shapes(H5IOStore):
    """Takes the place of a weights file, and keeps the shapes alone."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._path = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> _Shapes:
        self._path = str(path)
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.shapes[f"{self._path}/vars/{key}".lstrip("/")] = tuple(value.shape)


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what `model.save_weights` would write, by their paths in the file.

    Keras decides these paths while it saves, from classes and order; saving to a file
    to see them would copy all weights. The optimizer is left out.
    """
    store = _Shapes()
    optimizer = getattr(model, "optimizer", None)
    saving_lib._save_state(
        model,
        weights_store=store,
        assets_store=None,
        inner_path="",
        visited_saveables=set() if optimizer is None else {id(optimizer)},
    )
    return store.shapes


_BACKUP_FILES = ("_weights_path", "_training_metadata_path")
_EARLIER_FILES = ("_prev_weights_path", "_prev_training_metadata_path")


def backup_files(backup: Any) -> tuple[pathlib.Path, pathlib.Path]:
    """The files of a `BackupAndRestore`: weights and metadata (there is no public name)."""
    weights, metadata = (pathlib.Path(getattr(backup, name)) for name in _BACKUP_FILES)
    return weights, metadata


def earlier_backup_files(backup: Any) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a `BackupAndRestore` with `double_checkpoint` keeps the backup before."""
    weights, metadata = (pathlib.Path(getattr(backup, name)) for name in _EARLIER_FILES)
    return weights, metadata


def resumes_at(backup: Any, epoch: int) -> None:
    """Tells a `BackupAndRestore` the epoch that a resumed `fit` begins with.

    It only learns it when that epoch ends, and would write 0 into backups within it.
    """
    backup._current_epoch = max(backup._current_epoch, epoch)


def save_backups_with(backup: Any, save: Callable[[Callable[[], None]], None]) -> None:
    """Lets `save` do the saving of a `BackupAndRestore`.

    Keras overwrites the last backup in place, so that a process that is killed while it
    saves leaves none. There is no public way to save elsewhere and rename.

    Args:
        backup: The callback.
        save: Is given the callback's own way to save.
    """
    held = vars(backup).get("_save_model")  # of an earlier `fit`
    own = held.args[0] if isinstance(held, functools.partial) else backup._save_model
    vars(backup)["_save_model"] = functools.partial(save, own)


def epoch_to_save(backup: Any) -> int:
    """The epoch that a `BackupAndRestore` would have a resumed `fit` begin with."""
    return int(backup._current_epoch)


@contextlib.contextmanager
def backing_up_to(backup: Any, folder: pathlib.Path) -> Iterator[None]:
    """Lets a `BackupAndRestore` write its files into another folder."""
    names = ("backup_dir", *_BACKUP_FILES)
    held = {name: getattr(backup, name) for name in names}
    backup.backup_dir = str(folder)
    for name in _BACKUP_FILES:
        setattr(backup, name, str(folder / pathlib.Path(held[name]).name))
    try:
        yield
    finally:
        vars(backup).update(held)


# -- the state that a rollback restores ----------------------------------------


def values_of(model: Any) -> list[tuple[Any, np.ndarray]]:
    """All variables of a model and its optimizer, and copies of their values.

    Training writes into the values that a growth leaves alone. An optimizer that holds
    others may not list their variables as its own.
    """
    found = {id(variable): variable for variable in model.variables}
    for part in optimizer_parts(model.optimizer) if model.optimizer is not None else ():
        found.update((id(variable), variable) for variable in part.variables)
    return [(variable, np.array(read_variable(variable))) for variable in found.values()]


def set_values(values: Iterable[tuple[Any, np.ndarray]]) -> None:
    """Gives variables their values back."""
    for variable, value in values:
        variable.assign(value)


def state_parts(thing: Any) -> list[Any]:
    """The objects whose attributes are the state of `thing`, itself first.

    Trackers (of layers and optimizers) keep sets of ids beside the lists.
    """
    tracker = getattr(thing, "_tracker", None)
    return [thing] if tracker is None else [thing, tracker]


def unwrapped(container: Any) -> Any:
    """The built-in list or dict inside one that TensorFlow wraps to track what it holds.

    Such a wrapper passes for a list or dict, but what the built-in methods see of
    it isn't what it holds.
    """
    return getattr(container, "__wrapped__", getattr(container, "_storage", container))


# -- what a model was compiled with --------------------------------------------


def compiled_parts(model: Any) -> list[tuple[Any, int | None]]:
    """The losses and metrics that a model uses, with the position of the output of each.

    `compile` keeps them in `_compile_metrics` and `_compile_loss`, as the user gave them,
    and for each output once they have seen one. What was given by name is there only
    then. The position is `None` where one serves all outputs, or where it isn't known.
    """
    found: dict[int, tuple[Any, int | None]] = {}
    metrics = getattr(model, "_compile_metrics", None)
    loss = getattr(model, "_compile_loss", None)
    if metrics is not None and metrics.built:
        for held in (metrics._flat_metrics, metrics._flat_weighted_metrics):
            for output, one in enumerate(held):
                for metric in one.metrics if one is not None else ():
                    found.setdefault(id(metric), (metric, output))
    given = []
    if metrics is not None:
        given += [metrics._user_metrics, metrics._user_weighted_metrics]
    if loss is not None:
        given.append(loss._user_loss)
    names = list(getattr(metrics or loss, "output_names", None) or ["the only one"])
    for user in given:
        for part, at in _by_output(user, names):
            for one in keras.tree.flatten(part):
                if isinstance(one, (keras.Metric, keras.Loss)):
                    found.setdefault(id(one), (one, at))
    if getattr(model, "compiled", False):
        for metric in model.metrics:
            if metric is metrics:
                continue
            found.setdefault(id(metric), (metric, None))
    return list(found.values())


def _by_output(user: Any, names: Sequence[str]) -> list[tuple[Any, int | None]]:
    """The parts of what a user gave to `compile`, with the output that each is for."""
    if len(names) == 1:
        return [(user, 0)]
    if isinstance(user, dict):
        return [(part, names.index(k) if k in names else None) for k, part in user.items()]
    if isinstance(user, (list, tuple)) and len(user) == len(names):
        return [(part, output) for output, part in enumerate(user)]
    return [(user, None)]


def become(thing: Any, twin: Any) -> None:
    """Gives a loss or metric all that a new one of its class holds, and keeps its name.

    A metric can't change the shape of its state, and `compile` keeps the object in
    several places, among them the configuration that is saved.
    """
    name = thing.name
    attributes = vars(thing)
    attributes.clear()
    attributes.update(vars(twin))
    thing.name = name
