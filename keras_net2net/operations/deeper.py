"""Net2DeeperNet: insert layers that start as the identity (Chen et al., section 2.3)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import keras
from keras import layers

from keras_net2net.draft import Draft, Inserted, stand_in
from keras_net2net.errors import (
    GrowthError,
    NotIdentityError,
    SizeError,
    explain,
)
from keras_net2net.facts import Facts
from keras_net2net.operations.base import (
    Operation,
    find_layers,
    fixed_request,
    label,
    plain,
    whole_number,
)
from keras_net2net.operations.blocks import Block, find_block
from keras_net2net.operations.wider import Wider
from keras_net2net.plan import InitialWeight, Insertion, Step
from keras_net2net.rules.activations import activation_name, describe

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
FAMILY = (layers.Dense, *CONVOLUTIONS)
FORMS = ("identity", "residual")


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class Deeper(Operation):
    """Inserts layers or blocks that start as the identity, so that the model gets deeper.

    With `form="identity"`, each new layer is of the family of the layer that it follows
    (Dense, Conv1D, Conv2D or Conv3D; stride 1, the same kernel size) and holds the
    identity, so that the model computes what it computed before. It stands behind the
    layer's whole block, its normalization and its activation included.

    With `form="residual"`, a residual block `x + f(x)` is inserted, whose last weights
    start at zero, so that it is the identity, at inference and in training mode, and
    learns at once:

    - Where the layer ends a residual block, by its sum or what follows it, the new block
      is a copy of that one, weights included; only what makes its last output starts at
      zero: the gamma and beta of a normalization, the scale of a branch, or the last
      projection. Attention and MLP of a transformer, or other blocks that take turns
      along the model, are one block. A layer or nested model that holds a whole block is
      copied as a whole.
    - Behind any other Dense or convolution layer it is `x + V f(W x)` with V = 0 and a
      random W: f is the layer's normalization and activation, which may be any.

    With `between`, the part between two tensors is copied in the same way, whatever it is
    made of. Where it has no skip of its own, its input is added to it. What it reads of
    other tensors it goes on reading; layers that are called elsewhere, too, are copied
    as new ones. In a Sequential, which can't branch, the new block is a model of its own.

    Args:
        layers: Which layers: a name, a path, a glob pattern, a layer object, or a
            list of these. Defaults to `None`: `between` says where.
        count: Integer, how many layers or blocks to insert after each. Defaults to `1`.
        form: What is inserted: `"identity"` or `"residual"`. Defaults to `"identity"`.
        between: A pair of names, paths, layer objects or symbolic tensors: the part
            between the outputs of the two is repeated behind the second one. Both have
            the same shape. Defaults to `None`.
        batch_norm: Boolean, whether the new layers have BatchNormalization.
            Defaults to `None`: as in the layer's own block. An inserted
            normalization is exact at inference; in training mode it normalizes by
            the statistics of the batch, which changes the outputs, other than within
            a residual block.
        activation: The new layers' activation. Defaults to `None`: that of the
            block. An identity must leave the block's output as it is, as ReLU does
            after ReLU, or `"linear"` does after anything.
        units: Integer, the new layers' number of units, if larger than that of
            the layer below: Deeper composed with Wider. In a residual block that isn't
            a copy, the number of its hidden units. Defaults to `None`.

    Raises:
        GrowthError: If an argument isn't possible.

    Source: Chen, Goodfellow, Shlens: Net2Net (ICLR 2016), section 2.3, for identities;
    Goyal et al.: Accurate, Large Minibatch SGD (arXiv 1706.02677), section 5.1, for blocks
    whose last gamma starts at zero; Bachlechner et al.: ReZero (arXiv 2003.04887).

    Example:

    >>> import keras
    >>> import keras_net2net as n2n
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(2, name="logits"),
    ... ])
    >>> report = n2n.grow(model, n2n.Deeper("conv"), seed=0)
    >>> [layer.name for layer in model.layers][:2]
    ['conv', 'conv_deeper_1']
    >>> x = inputs = keras.Input((4,))
    >>> y = keras.layers.Dense(8, activation="gelu", name="up")(x)
    >>> x = keras.layers.Add(name="block")([x, keras.layers.Dense(4, name="down")(y)])
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    >>> report = n2n.grow(model, n2n.Deeper("block", form="residual"), seed=0)
    >>> [layer.name for layer in model.layers][4:]
    ['up_deeper_1', 'down_deeper_1', 'block_deeper_1', 'out']
    """

    layers: Any = None
    count: int = 1
    _: dataclasses.KW_ONLY
    form: str = "identity"
    between: tuple[Any, Any] | None = None
    batch_norm: bool | None = None
    activation: Any = None
    units: int | None = None

    def __post_init__(self) -> None:
        received = repr(self)
        count = whole_number(self.count, "`count`", received, kind="a number of layers")
        self._set(layers=fixed_request(self.layers), count=count)
        if self.units is not None:
            self._set(units=whole_number(self.units, "`units`", received))
        if self.batch_norm not in (None, True, False):
            raise GrowthError(
                explain(
                    f"`batch_norm` can't be {self.batch_norm!r}",
                    "it says whether the new layers are normalized",
                    received,
                    "Pass `True`, `False`, or `None` for what the layer's block has",
                )
            )
        if self.form not in FORMS:
            raise GrowthError(
                explain(
                    f"`form` can't be {self.form!r}",
                    f"it is one of {', '.join(map(repr, FORMS))}",
                    received,
                    "Pass for example `form='residual'`",
                )
            )
        if self.between is not None:
            self._set(between=self._pair(received))
        elif self.layers is None:
            raise GrowthError(
                explain(
                    "No layer was named",
                    "a layer is inserted after another one",
                    received,
                    "Pass the layer after which to insert, such as `Deeper('conv2')`",
                )
            )
        if self.activation is not None:
            self._set(activation=self._named_activation(received))

    def _pair(self, received: str) -> tuple[Any, Any]:
        """The two ends of a part, in their plain form."""
        pair = self.between
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise GrowthError(
                explain(
                    f"`between` can't be {plain(pair)!r}",
                    "it names the two ends of the part that is repeated",
                    received,
                    "Pass for example `between=('block1_out', 'block2_out')`",
                )
            )
        if self.layers is not None or self.form not in ("identity", "residual"):
            raise GrowthError(
                explain(
                    "`between` can't be combined with `layers` or another `form`",
                    "the part between two tensors is repeated behind the second of them",
                    received,
                    "Pass `Deeper(between=(a, b))` alone",
                )
            )
        return tuple(pair)

    def _named_activation(self, received: str) -> Any:
        """The activation by its name where it has one, so that operations compare."""
        try:
            function = keras.activations.get(self.activation)
        except (ValueError, TypeError) as error:
            raise GrowthError(
                explain(
                    f"`activation` can't be {self.activation!r}",
                    "it is the name of an activation, a function or an activation layer",
                    received,
                    "Pass for example `activation='relu'`",
                )
            ) from error
        return activation_name(function) or function

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function: always, at inference."""
        return True

    @property
    def looks_at_model(self) -> bool:
        """Whether it copies weights: those that the operations before it have left."""
        return self._repeats

    @property
    def ends_stage(self) -> bool:
        """Whether it inserts parts of any kind, which the operations behind it look into."""
        return self._repeats

    @property
    def _repeats(self) -> bool:
        return self.between is not None or self.form == "residual"

    def by_path(self, draft: Draft) -> Operation:
        """The same operation with paths in the place of the layer objects of a draft."""
        if not self._repeats:
            return super().by_path(draft)
        paths = {id(call.operation): call.path for _, call in draft.graph.all_calls()}
        named = {key: plain(vars(self)[key], paths) for key in ("layers", "between")}
        return type(self).from_config({**vars(self), **named})

    def get_config(self) -> dict[str, Any]:
        """The arguments, ready to be written as JSON."""
        config = super().get_config()
        if callable(self.activation):
            config["activation"] = keras.activations.serialize(self.activation)
        return config

    def draft(self, draft: Draft) -> list[Step]:
        """Inserts the layers into a draft."""
        if self._repeats:
            from keras_net2net.operations.residual import draft_residual

            return draft_residual(self, draft)
        steps = []
        for match in find_layers(draft, self.layers, repr(self)):
            # Insertions leave all sizes; a widening among them doesn't: look the layer up again.
            operation = match.facts.operation
            facts = match.facts if self.units is None else draft.inference.facts[id(operation)]
            if not match.named and not isinstance(facts.operation, FAMILY):
                continue
            steps += self._after(draft, facts)
        if not steps:
            raise GrowthError(
                explain(
                    f"No layer of {draft.model.name!r} that was asked for can be deepened",
                    "only Dense and convolution layers have an identity",
                    repr(self),
                    "Name a Dense, Conv1D, Conv2D or Conv3D layer",
                )
            )
        return steps

    def _after(self, draft: Draft, facts: Facts) -> list[Step]:
        if not isinstance(facts.operation, FAMILY) or not facts.has_rule:
            raise GrowthError(
                explain(
                    f"No layer can be inserted after {label(facts)}",
                    f"{type(facts.operation).__name__} has no identity of its family",
                    repr(self),
                    "Name a Dense, Conv1D, Conv2D or Conv3D layer",
                )
            )
        blocks = [find_block(g, call) for g, call in draft.calls_of(facts.operation)]
        activation = self._activation(facts, blocks)
        # A convolution with as many groups as channels makes units that aren't its own.
        key = "units" if isinstance(facts.operation, layers.Dense) else "filters"
        units = int(draft.setting(facts.operation, key))
        if self.units is not None and self.units < units:
            raise SizeError(
                explain(
                    f"The layer after {label(facts)} can't have {self.units} units",
                    f"an identity passes on all {units} units of the layer below",
                    repr(self),
                    f"Pass at least {units} units",
                )
            )
        insertions: list[Insertion] = []
        previous = facts.path
        ends = [block.end for block in blocks]
        for _ in range(self.count):
            chain = self._chain(draft, facts, blocks[0], activation, units, previous)
            for i, block in enumerate(blocks):
                ends[i] = draft.insert(block.graph, ends[i], chain)
            insertions += [inserted.insertion for inserted in chain]
            previous = chain[0].insertion.path
        steps = [Step(self, insertions=tuple(insertions), notes=self._notes(insertions))]
        if self.units is not None and self.units > units:
            names = [i.path for i in insertions if issubclass(i.layer_class, FAMILY)]
            steps += Wider(names, self.units).draft(draft)
        return steps

    def _activation(self, facts: Facts, blocks: list[Block]) -> Any:
        """The new layers' activation: a function, or an activation layer.

        A shared layer may be followed by another activation at each of its calls;
        one that leaves the output of every block as it is will do.
        """
        if self.activation is not None:
            candidates = [keras.activations.get(self.activation)]
        else:
            candidates = [block.function for block in blocks]
        for new in candidates:
            changed = [block for block in blocks if not _leaves_alone(new, block)]
            if not changed:
                return new
        raise self._not_identity(facts, blocks, changed[0])

    def _not_identity(self, facts: Facts, blocks: list[Block], block: Block) -> NotIdentityError:
        own = [block for block in blocks if not _leaves_alone(block.function, block)]
        if self.activation is None and own:
            name = own[0].activation_label
            why = f"its activation {name!r} isn't idempotent: f(f(x)) differs from f(x)"
        elif self.activation is None:
            names = ", ".join(repr(block.activation_label) for block in blocks)
            why = f"its calls are followed by {names}, none of which leaves the others as they are"
        else:
            name = _label(self.activation)
            why = (
                f"the activation {name!r} doesn't leave the output of the block's "
                f"{block.activation_label!r} as it is"
            )
        return NotIdentityError(
            explain(
                f"No identity layer can be inserted after {label(facts)}",
                why,
                repr(self),
                "Pass `activation='linear'`, or name a layer with ReLU or no activation",
            )
        )

    def _chain(
        self, draft: Draft, facts: Facts, block: Block, activation: Any, units: int, after: str
    ) -> list[Inserted]:
        """The layers that one identity is made of: kernel, normalization, activation."""
        name = _new_name(draft, facts)
        prefix = block.graph.path + "/" if block.graph.path else ""
        normalized = block.normalization is not None if self.batch_norm is None else self.batch_norm
        inline = (block.inline or self.activation is not None) and not normalized
        inline = inline or (block.activation is None and self.activation is None)
        chain = [_kernel_layer(draft, facts, prefix + name, units, activation if inline else None)]
        if normalized:
            chain.append(_normalization(facts, block, f"{prefix}{name}_bn", units))
        if not inline and not describe_linear(activation):
            chain.append(_activation_layer(activation, f"{prefix}{name}_{_label(activation)}"))
        if chain:
            chain = [
                dataclasses.replace(
                    inserted,
                    insertion=dataclasses.replace(
                        inserted.insertion, after=after if i == 0 else chain[i - 1].insertion.path
                    ),
                )
                for i, inserted in enumerate(chain)
            ]
        return chain

    def _notes(self, insertions: list[Insertion]) -> tuple[str, ...]:
        normalized = [
            i.path for i in insertions if issubclass(i.layer_class, layers.BatchNormalization)
        ]
        if not normalized:
            return ()
        return (
            f"{', '.join(normalized)}: exact at inference; in training mode it normalizes by the "
            "statistics of the batch, so that outputs differ until it has adapted",
        )


def _leaves_alone(new: Any, block: Block) -> bool:
    """Whether an activation after a block changes nothing."""
    known, before = describe(new), block.describe()
    if describe_linear(new):
        return True
    return known is not None and before is not None and known.leaves_alone(before)


def describe_linear(activation: Any) -> bool:
    """Whether an activation is the linear one."""
    function = activation.activation if isinstance(activation, layers.Activation) else activation
    return not isinstance(function, keras.Layer) and activation_name(function) == "linear"


def _label(activation: Any) -> str:
    """A short name for an activation, fit for a layer's name."""
    function = getattr(activation, "activation", activation)
    if isinstance(function, str):
        return function
    name = None if isinstance(function, keras.Layer) else activation_name(function)
    return name or type(function).__name__.lower()


def _new_name(draft: Draft, facts: Facts) -> str:
    """A stable and readable name: `conv2_deeper_1`, then `conv2_deeper_2`."""
    base = re.sub(r"_deeper_\d+$", "", facts.operation.name)
    taken = {call.operation.name for _, call in draft.graph.all_calls()}
    taken |= {path.rsplit("/", 1)[-1] for path in draft.inserted}
    number = 1
    while f"{base}_deeper_{number}" in taken:
        number += 1
    return f"{base}_deeper_{number}"


def _made(path: str, cls: type, config: dict[str, Any], weights: list[InitialWeight]) -> Inserted:
    config = {**config, "name": path.rsplit("/", 1)[-1], "trainable": True}
    return Inserted(Insertion(path, "", cls, config, tuple(weights)), stand_in(cls, config))


def _kernel_layer(draft: Draft, facts: Facts, path: str, units: int, activation: Any) -> Inserted:
    """A layer of the family, with the identity as its kernel."""
    layer = facts.operation
    config = dict(layer.get_config())
    config["activation"] = (
        "linear" if activation is None else keras.activations.serialize(activation)
    )
    for key in ("lora_rank", "lora_alpha", "quantization_config"):
        config.pop(key, None)
    if isinstance(layer, layers.Dense):
        config["units"] = units
        kernel = InitialWeight("kernel", (units, units), identity_at=())
    else:
        causal = config["padding"] == "causal"
        config.update(
            filters=units,
            strides=(1,) * len(layer.kernel_size),
            dilation_rate=(1,) * len(layer.kernel_size),
            padding="causal" if causal else "same",
            groups=1,
        )
        # "same" padding puts the smaller half before: an even kernel's centre is
        # the last position of its first half. A causal kernel sees only the past.
        centre = tuple(size - 1 if causal else (size - 1) // 2 for size in layer.kernel_size)
        kernel = InitialWeight("kernel", (*layer.kernel_size, units, units), identity_at=centre)
    bias = [InitialWeight("bias", (units,))] if config.get("use_bias", True) else []
    return _made(path, type(layer), config, [kernel, *bias])


def _normalization(facts: Facts, block: Block, path: str, units: int) -> Inserted:
    """A BatchNormalization that undoes itself at inference.

    With mean 0 and variance 1 - epsilon it divides by exactly one; gamma = 1 and
    beta = 0 then leave everything as it is. A variance of 1 would be off by half
    of epsilon.
    """
    if block.normalization is not None:
        cls, config = type(block.normalization), dict(block.normalization.get_config())
    else:
        cls = layers.BatchNormalization
        first = getattr(facts.operation, "data_format", None) == "channels_first"
        config = dict(cls(axis=1 if first else -1, dtype=facts.operation.dtype_policy).get_config())
    weights = [
        InitialWeight("moving_mean", (units,)),
        InitialWeight("moving_variance", (units,), 1.0 - config["epsilon"]),
    ]
    if config["scale"]:
        weights.append(InitialWeight("gamma", (units,), 1.0))
    if config["center"]:
        weights.append(InitialWeight("beta", (units,)))
    return _made(path, cls, config, weights)


def _activation_layer(activation: Any, path: str) -> Inserted:
    if isinstance(activation, keras.Layer):
        return _made(path, type(activation), dict(activation.get_config()), [])
    config = layers.Activation(activation, name=path.rsplit("/", 1)[-1]).get_config()
    return _made(path, layers.Activation, dict(config), [])
