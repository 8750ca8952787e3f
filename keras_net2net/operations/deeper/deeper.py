"""Net2DeeperNet: insert layers that start as the identity (Chen et al., section 2.3)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
from keras import layers

from keras_net2net.errors import GrowthError, NotIdentityError, SizeError, whole_number
from keras_net2net.graph.structure import Tensor
from keras_net2net.internals.activations import activation_label, activation_name
from keras_net2net.operations.base import Operation, plain
from keras_net2net.operations.blocks import Block
from keras_net2net.operations.deeper.building import Builder, Namer
from keras_net2net.operations.deeper.factor import factorise
from keras_net2net.operations.deeper.forms import (
    InsertionPoint,
    changing,
    check_normalized,
    choose,
    find_moments,
    identity_chain,
    insert_chains,
    insertion_point,
    normalization_notes,
)
from keras_net2net.operations.deeper.identities import leaves_alone, prelu
from keras_net2net.operations.deeper.residual import (
    block_between,
    blocks_behind,
    can_branch,
    insert_blocks,
)
from keras_net2net.operations.families import DEPTHWISE, FAMILY, FAMILY_NAMES, KERNELS, channel_axis
from keras_net2net.operations.select import find_layers, fixed_request, label
from keras_net2net.operations.wider.wider import Wider
from keras_net2net.planning.draft import Draft
from keras_net2net.planning.making import Inserted
from keras_net2net.planning.plan import Step
from keras_net2net.widths.facts import Facts

FORMS = ("identity", "prelu", "residual", "factor", "auto")
# The arguments that mean nothing for a form, and why.
_RANK = "it is the number of units between the factors of a layer"
_UNUSED = {
    "identity": {"rank": _RANK},
    "prelu": {"rank": _RANK, "activation": "the activation is a PReLU"},
    "residual": {
        "rank": _RANK,
        "calibration": "what a new block adds is zero, whatever its normalizations are set to",
    },
    "factor": {
        "activation": "the activation is that of the layer that is factored",
        "batch_norm": "factors are linear in between",
        "units": "`rank` is the number of units between factors",
        "calibration": "factors have no normalization between them",
        "count": "a layer is factored once",
    },
    "auto": {"rank": _RANK},
}


@keras.saving.register_keras_serializable(package="keras_net2net")
@dataclasses.dataclass(frozen=True, repr=False)
class Deeper(Operation):
    """Inserts layers or blocks that start as the identity, so that the model gets deeper.

    With `form="identity"`, each new layer is of the family of the layer that it follows
    (Dense, EinsumDense, or a convolution of any kind; stride 1, the same kernel size) and
    holds the identity, so that the model computes what it computed before. It stands
    behind the layer's whole block, its normalization and its activation included.

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

    An inserted BatchNormalization undoes itself: gamma = sqrt(v + epsilon), beta = m,
    moving mean m and moving variance v. This is exact at inference whatever m and v
    are. With data, m and v are the moments of what it reads there, in training mode:
    then it is exact in training mode too, on that data. Without data they follow from
    the block's own normalization (with ReLU: the moments of a rectified Gaussian), and
    the report says by how much the outputs differ in training mode.

    Args:
        layers: Which layers: a name, a path, a glob pattern, a layer object, or a
            list of these. Defaults to `None`: `between` says where.
        count: Integer, how many layers or blocks to insert after each. Defaults to `1`.
        form: What the new layers start as. Defaults to `"identity"`.
            - `"identity"`: layers with the activation of the block, which must be
              idempotent (as ReLU is), or with `activation`.
            - `"prelu"`: linear layers, each with a PReLU whose slopes are one: an
              identity that can learn to bend, after any activation.
            - `"residual"`: a residual block that adds zero, after any activation.
            - `"factor"`: the layer itself (Dense, Conv1D, Conv2D or Conv3D) is replaced
              by two whose product it is: one without bias that makes `rank` units from
              what the layer sees, then the layer, which maps these to its own.
            - `"auto"`: the best of these that is exact; the plan says which, and why.
        between: A pair of names, paths, layer objects or symbolic tensors: the part
            between the outputs of the two is repeated behind the second one. Both have
            the same shape. Defaults to `None`.
        batch_norm: Boolean, whether the new layers have BatchNormalization.
            Defaults to `None`: as in the layer's own block.
        activation: The new layers' activation. Defaults to `None`: that of the
            block. An identity must leave the block's output as it is, as ReLU does
            after ReLU, or `"linear"` does after anything.
        units: Integer, the new layers' number of units, if larger than that of
            the layer below: Deeper composed with Wider. In a residual block that isn't
            a copy, the number of its hidden units. Defaults to `None`.
        rank: Integer, the number of units between two factors. Below the rank of the
            kernel it isn't exact: the plan names the relative error of the kernel.
            Defaults to `None`: as many as there can be, which is exact.
        calibration: A batch of inputs `x`, or `(x, y)`, by which inserted
            normalizations are set. It isn't part of the configuration. Defaults to
            `None`: the `calibration` of the growth; in a callback, that of the callback,
            or the first batches of its `fit`.

    Raises:
        GrowthError: If an argument isn't possible.

    Source: Chen, Goodfellow, Shlens: Net2Net (ICLR 2016), section 2.3, for identities;
    PReLU: He et al., arXiv 1502.01852; Goyal et al.: Accurate, Large Minibatch SGD (arXiv
    1706.02677), section 5.1, for blocks whose last gamma starts at zero; Bachlechner et
    al.: ReZero (arXiv 2003.04887).

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
    rank: int | None = None
    calibration: Any = dataclasses.field(default=None, compare=False, repr=False)

    def _check(self) -> None:
        count = whole_number(self.count, "`count`", kind="a number of layers")
        self._set(layers=fixed_request(self.layers), count=count)
        for name in ("units", "rank"):
            value = vars(self)[name]
            self._set(**{name: None if value is None else whole_number(value, f"`{name}`")})
        check_normalized(self.batch_norm, "the layer's block")
        if self.between is not None:
            self._set(between=self._pair())
        elif self.layers is None:
            raise GrowthError(
                "No layer was named",
                "a layer is inserted after another one",
                "Pass the layer after which to insert, such as `Deeper('conv2')`",
            )
        if self.activation is not None:
            self._set(activation=self._named_activation())
        self._check_form()

    def _check_form(self) -> None:
        """Checks the form, and that the other arguments mean something for it."""
        if self.form not in FORMS:
            raise GrowthError(
                f"`form` can't be {self.form!r}",
                "it is what an inserted layer starts as",
                f"Pass one of {', '.join(map(repr, FORMS))}",
            )
        form = "residual" if self.between is not None else self.form
        for name, why in _UNUSED[form].items():
            given = getattr(self, name)
            if given is not None and not (name == "count" and given == 1):
                raise GrowthError(
                    f"`{name}` means nothing for the form {form!r}",
                    why,
                    f"Leave `{name}` out, or pass another `form`",
                )

    def _pair(self) -> tuple[Any, Any]:
        """The two ends of a part, in their plain form."""
        pair = self.between
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise GrowthError(
                f"`between` can't be {plain(pair)!r}",
                "it names the two ends of the part that is repeated",
                "Pass for example `between=('block1_out', 'block2_out')`",
            )
        if self.layers is not None or self.form not in ("identity", "residual"):
            raise GrowthError(
                "`between` can't be combined with `layers` or another `form`",
                "the part between two tensors is repeated behind the second of them",
                "Pass `Deeper(between=(a, b))` alone",
            )
        return tuple(pair)

    def _named_activation(self) -> Any:
        """The activation by its name where it has one, so that operations compare."""
        try:
            function = keras.activations.get(self.activation)
        except (ValueError, TypeError) as error:
            raise GrowthError(
                f"`activation` can't be {self.activation!r}",
                "it is the name of an activation, a function or an activation layer",
                "Pass for example `activation='relu'`",
            ) from error
        return activation_name(function) or function

    @property
    def exact(self) -> bool:
        """Whether the operation preserves the function, at inference: but for a given rank.

        With a rank the step of the plan says it, once the kernel is known.
        """
        return self.rank is None

    @property
    def looks_at_model(self) -> bool:
        """Whether weights or activations are needed: for copies, factors, normalizations."""
        return self._repeats or self.form in ("factor", "auto") or self.batch_norm is not False

    @property
    def ends_stage(self) -> bool:
        """Whether it inserts parts of any kind, which the operations behind it look into."""
        return self._repeats or self.form == "auto"

    @property
    def _repeats(self) -> bool:
        return self.between is not None or self.form == "residual"

    def by_path(self, draft: Draft) -> Operation:
        """The same operation with paths in the place of the layer objects of a draft."""
        if not self._repeats:
            return super().by_path(draft)
        paths = {id(call.operation): call.path for _, call in draft.graph.all_calls()}
        named = {key: plain(vars(self)[key], paths) for key in ("layers", "between")}
        return dataclasses.replace(self, **named)

    def get_config(self) -> dict[str, Any]:
        """The arguments but for data, ready to be written as JSON."""
        config = super().get_config()
        if callable(self.activation):
            config["activation"] = keras.activations.serialize(self.activation)
        return config

    def draft(self, draft: Draft) -> list[Step]:
        """Inserts the layers into a draft."""
        if self._repeats:
            ends: dict[int, Tensor] = {}
            if self.between is not None:
                return [insert_blocks(self, draft, block_between(draft, self.between), ends)]
            targets = blocks_behind(draft, self.layers)
            return [insert_blocks(self, draft, target, ends) for target in targets]
        family = KERNELS if self.form == "factor" else FAMILY  # what a pattern means
        found = [
            match.facts
            for match in find_layers(draft, self.layers)
            if match.named or isinstance(match.facts.operation, family)
        ]
        if not found:
            raise GrowthError(
                f"No layer of {draft.model.name!r} that was asked for can be deepened",
                "only Dense and convolution layers have an identity",
                f"Name {FAMILY_NAMES}",
            )
        if self.form == "factor":
            return [factorise(self, draft, facts, self.rank) for facts in found]
        points = [self._point(draft, facts) for facts in found]
        find_moments(draft, points, self.calibration)
        steps = [self._after(draft, point) for point in points]
        if self.units is not None:
            steps += self._widened(draft, steps)
        return steps

    def _point(self, draft: Draft, facts: Facts) -> InsertionPoint:
        """What is known of a layer after which something is to be inserted."""
        layer = facts.operation
        if not isinstance(layer, FAMILY) or not facts.has_rule:
            raise GrowthError(
                f"No layer can be inserted after {label(facts)}",
                f"{type(layer).__name__} has no identity of its family",
                f"Name {FAMILY_NAMES}",
            )
        point = insertion_point(draft, facts, self)
        point.activation = self._activation(point.blocks)
        if point.activation is None and self.form == "identity":
            raise self._not_identity(facts, point.blocks)
        self._check_units(facts, point.blocks[0].end)
        point.branches = self.units is None and can_branch(point.blocks)
        return point

    def _check_units(self, facts: Facts, end: Tensor) -> None:
        """Checks that the new layers can have as many units as were asked for."""
        layer = facts.operation
        einsum = isinstance(layer, layers.EinsumDense)
        units = int((facts.main.size if einsum else end.shape[channel_axis(layer, end)]) or 0)
        if self.units is None:
            return
        if isinstance(layer, DEPTHWISE) or len(facts.units) > 1:
            why = f"{type(layer).__name__} makes no units of one kind"
            instead = "Leave `units` out, and widen what makes its channels"
        elif self.units < units:
            why = f"an identity passes on all {units} units of the layer below"
            instead = f"Pass at least {units} units"
        else:
            return
        problem = f"The layer after {label(facts)} can't have {self.units} units"
        raise SizeError(problem, why, instead)

    def _after(self, draft: Draft, point: InsertionPoint) -> Step:
        """Inserts the layers after one layer."""
        form, notes = choose(point) if self.form == "auto" else (self.form, ())
        if form == "residual":
            return insert_blocks(self, draft, point.blocks[0], {}, notes)
        chain = functools.partial(self._chain, draft, point, form)
        insertions = insert_chains(draft, point, self.count, chain, followed=0)
        notes = (*notes, *normalization_notes(insertions, point))
        return Step(self, insertions=tuple(insertions), notes=notes)

    def _widened(self, draft: Draft, steps: list[Step]) -> list[Step]:
        """Widens what was inserted."""
        made = [one for step in steps for one in step.insertions]
        paths = [one.path for one in made if issubclass(one.layer_class, FAMILY)]
        facts = {one.path: one for one in draft.layers()}
        narrow = [path for path in paths if facts[path].main.size != self.units]
        return Wider(narrow, self.units).steps(draft) if narrow else []

    def _activation(self, blocks: list[Block]) -> Any | None:
        """The new layers' activation: a function, or an activation layer; `None`: none fits.

        A shared layer may be followed by another activation at each of its calls;
        one that leaves the output of every block as it is will do.
        """
        if self.activation is not None:
            candidates = [keras.activations.get(self.activation)]
        else:
            candidates = [block.function or keras.activations.linear for block in blocks]
        fitting = (new for new in candidates if all(leaves_alone(new, one) for one in blocks))
        return next(fitting, None)

    def _not_identity(self, facts: Facts, blocks: list[Block]) -> NotIdentityError:
        own = [block for block in blocks if not leaves_alone(block.function, block)]
        if self.activation is None and own:
            why = changing(own[0])
        elif self.activation is None:
            names = ", ".join(repr(block.activation_label) for block in blocks)
            why = f"its calls are followed by {names}, none of which leaves the others as they are"
        else:
            new = keras.activations.get(self.activation)
            changed = next(block for block in blocks if not leaves_alone(new, block))
            why = (
                f"the activation {activation_label(self.activation)!r} doesn't leave the output "
                f"of the block's {changed.activation_label!r} as it is"
            )
        return NotIdentityError(
            f"No identity layer can be inserted after {label(facts)}",
            why,
            "Pass `activation='linear'` or `form='prelu'`, or name a layer with ReLU or no "
            "activation",
        )

    def _chain(self, draft: Draft, point: InsertionPoint, form: str) -> list[Inserted]:
        """The layers that one identity is made of: kernel, normalization, activation."""
        layer, block = point.layer, point.blocks[0]
        path = Builder(draft, block.graph).path(Namer(draft).stem(layer.name))
        activation = point.activation if form == "identity" else None
        inline = (block.inline or self.activation is not None) and not point.normalized
        inline = inline or (block.activation is None and self.activation is None)
        chain = identity_chain(point, layer, path, activation, inline)
        if form == "prelu":
            chain.append(prelu(layer, f"{path}_prelu", block.end))
        return chain
