"""What a rule speaks with: one call of a layer, as a rule sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_net2net import internals
from keras_net2net.graph.structure import Call
from keras_net2net.widths.expressions import (
    EXPRESSIONS,
    Axes,
    Expression,
    Fixed,
    Obstacle,
    Width,
    fix,
    resolve,
    widths_of,
)
from keras_net2net.widths.facts import (
    FOLLOWS,
    MAKES,
    READS,
    Competition,
    Facts,
    Normalized,
    Scaled,
    Treated,
    WeightAxis,
    follows,
)
from keras_net2net.widths.inferred import Inferred
from keras_net2net.widths.registry import rule_for
from keras_net2net.widths.treatments import ANYTHING, Content, Treatment
from keras_net2net.widths.unification import unify

# Follows units through a function: what it is, the axes of its argument, dtype and path.
Follow = Callable[[Any, Axes, str, str], Axes | None]


class RuleCall:
    """What a rule uses to say what a layer does; one for each call of a layer.

    Args:
        state: What was inferred so far.
        call: The call.
        facts: What is known of the layer; shared by all its calls.
        follow: What follows units through a function.
        content: What the inputs hold for units that fill.
    """

    def __init__(
        self,
        state: Inferred,
        call: Call,
        facts: Facts,
        follow: Follow,
        content: Content | None = None,
    ) -> None:
        self._state = state
        self._call = call
        self._facts = facts
        self._follow = follow
        self._said: tuple[Treatment, Facts, Iterable[str] | None] = (ANYTHING, facts, None)
        self._beside: tuple[Sequence[Expression], Treatment] = ((), ANYTHING)
        self._shapes: list[tuple[int | None, ...]] | None = None
        self.content = state.content_of(call) if content is None else content
        self.layer = facts.operation

    @property
    def output_shapes(self) -> list[tuple[int | None, ...]]:
        """The shapes of the outputs of this call, flat."""
        if self._shapes is not None:
            return self._shapes
        return [tensor.shape for tensor in self._call.outputs]

    def setting(self, key: str) -> Any:
        """The layer's attribute `key`, as it is in the plan so far.

        Sizes must be read through this, since an earlier operation of the same
        plan may have changed them.
        """
        changed = self._state.settings.get(id(self.layer), {})
        return changed[key] if key in changed else getattr(self.layer, key)

    def units(self, key: str) -> Expression:
        """The units that the layer makes, as many as its attribute `key` says.

        Args:
            key: The config key and attribute, such as `"units"` or `"filters"`.

        Returns:
            The same expression at every call of the layer.
        """
        if key not in self._facts.units:
            path = self._facts.part_of or self._facts.path
            name = path if not self._facts.units else f"{path}:{key}"
            self._facts.units[key] = self._state.new_width(name, self.setting(key))
            self._facts.config[key] = self._facts.units[key]
        return self._facts.units[key]

    def expose(self, key: str, expression: Expression) -> None:
        """Says that the layer counts these units, which a layer inside it makes."""
        if key in self._facts.units:
            return
        width = resolve(expression)
        path = self._facts.part_of or self._facts.path
        if isinstance(width, Width) and width.name.startswith(path):
            width.name = f"{path}:{key}" if self._facts.units else path
        self._facts.units[key] = expression

    def counted(self, layer: Any) -> dict[str, Expression]:
        """The sizes that a layer inside this one counts, once its rule was applied."""
        return dict(self._state.facts[id(layer)].units)

    def new_units(self, name: str, size: int) -> Expression:
        """Units that follow from the layer's settings, under a name of their own."""
        known = self._facts.units
        if name not in known:
            path = self._facts.part_of or self._facts.path
            known[name] = self._state.new_width(f"{path}:{name}", size)
        return known[name]

    def configure(self, key: str, value: Any) -> None:
        """Says that a config key follows from widths.

        Args:
            key: The config key and attribute, such as `"target_shape"`.
            value: An expression, or a tuple of expressions and plain numbers.
        """
        self._facts.config[key] = value

    def configure_argument(self, name: str, value: Any) -> bool:
        """Says that an argument of this call, which is no tensor, follows from widths.

        Args:
            name: The name of the argument: the `"key"` of a slice.
            value: As for `configure`; and slices and places from the end in it.

        Returns:
            Whether the argument can be changed: not what the code of an opened layer
            passes, or what several calls of one operation share.
        """
        if self._call.node is None or not internals.is_called_once(self.layer):
            return False
        self._facts.arguments[name] = (self._call, value)
        return True

    def weight(
        self, name: str, *axes: WeightAxis | Expression | int, scale: Scaled | None = None
    ) -> None:
        """Says what the axes of a weight are.

        Args:
            name: The name of the variable.
            *axes: For each axis `makes(...)`, `reads(...)` or `follows(...)`, or
                its size where it never changes.
            scale: What the weight is multiplied by at a growth. Defaults to `None`.
        """
        typed = tuple(
            axis
            if isinstance(axis, WeightAxis)
            else follows(Fixed(axis) if isinstance(axis, int) else axis)
            for axis in axes
        )
        typed = tuple(
            dataclasses.replace(axis, content=self.content) if axis.role == READS else axis
            for axis in typed
        )
        known = self._facts.weights.get(name)
        if known is not None and len(known) == len(typed):
            merged = []
            for old, new in zip(known, typed, strict=True):
                self.unify(old.expression, new.expression, "is called more than once")
                if FOLLOWS in (old.role, new.role):
                    role = new.role if old.role == FOLLOWS else old.role
                elif old.role != new.role:
                    self.fix(new.expression, "both makes and reads units with one weight")
                    role = old.role
                else:
                    role = old.role
                content = new.content if old.role != READS else old.content.join(new.content)
                merged.append(WeightAxis(old.expression, role, old.silent or new.silent, content))
            typed = tuple(merged)
        self._facts.weights[name] = typed
        if scale is not None:
            self._facts.scales[name] = scale

    @property
    def treatment(self) -> Treatment:
        """What was said with `treat` so far."""
        return self._said[0]

    @property
    def treated(self) -> Treated:
        """The same, with the weights that it goes for."""
        treatment, facts, names = self._said
        role = MAKES if treatment.makes else FOLLOWS if treatment.weighs else None
        if names is None:
            names = dict.fromkeys(one.name for one in facts.axes if one.axis.role == role)
        return Treated(treatment, tuple((facts, name) for name in names))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, as it is in the plan so far."""
        return self._state.shape_of(self._facts, name)

    def share_part(self, layer: Any, expression: Expression, scale: Scaled | None = None) -> None:
        """Lets what makes units in a layer inside this one hold the shares of copies.

        Args:
            layer: The layer; its rule was applied before.
            expression: The units.
            scale: What its weights are multiplied by at a growth.
        """
        self._state.parts_that_share.append((self._state.facts[id(layer)], expression, scale))

    def treat(
        self,
        treatment: Treatment | None,
        beside: Sequence[Expression] = (),
        others: Treatment = ANYTHING,
        *,
        weights: Iterable[str] | None = None,
        part: Any = None,
    ) -> None:
        """Says what the operation does to the value of a unit.

        A normalization over units of a size that isn't a multiple of the old one
        needs units that fill: that hold the mean of the others, or zero. Whether
        they still do when they get there depends on what lies between. The shares of
        copies, new classes behind their head and the zeros of a new residual block depend
        on it as well. An operation that says nothing is taken to make anything of units,
        which is always safe.

        Args:
            treatment: One of the constants of `treatments`.
            beside: The axes that it passes through with other units, for which it does
                something else: a `Dense` behind a transposition, say, makes units on the
                last axis, and mixes the places on which others lie.
            others: What it does to the values of those.
            weights: The names of the weights in which its output is linear. Defaults to
                those that make units, or else to all that hold something for each.
            part: The layer inside this one that has these weights, whose rule was applied
                before. Defaults to `None`: the layer itself.
        """
        facts = self._facts if part is None else self._state.facts[id(part)]
        self._said = treatment or ANYTHING, facts, weights
        self._beside = beside, others

    @property
    def made(self) -> Content:
        """What the outputs hold for units that fill, by what was said with `treat`."""
        content = self.content.after(self.treatment)
        beside, others = self._beside
        if any(True for axis in beside for _ in widths_of(axis)):
            content = content.join(self.content.after(others))
        return content

    def normalize(
        self,
        expression: Expression,
        fill: str | None,
        copies: bool = True,
        why: str = "normalizes over its units",
    ) -> None:
        """Says that the operation normalizes over units, or takes their mean.

        Args:
            expression: The units.
            fill: `"mean"` or `"zero"`, if units that hold that leave the others as
                they are.
            copies: Whether copying all of them equally often does. Defaults to `True`.
            why: What it does, for who asks for another size.
        """
        self._state.normalized.append(
            Normalized(expression, fill, copies, self.content, self.obstacle(why))
        )

    def unify(self, a: Expression, b: Expression, why: str = "needs both sizes to agree") -> None:
        """Makes two axes agree; a width that meets a fixed size becomes fixed."""
        unify(a, b, self.obstacle(why))

    def fix(self, expressions: Expression | Sequence[Expression], why: str) -> None:
        """Forbids the widths of one axis, or of several, to change.

        Args:
            expressions: One expression, or several.
            why: What the layer does with the axis, to complete the sentence
                `"the layer ..."`, e.g. `"normalizes over the units"`.
        """
        for expression in [expressions] if isinstance(expressions, EXPRESSIONS) else expressions:
            fix(expression, self.obstacle(why))

    def compete(self, expression: Expression, kind: str, why: str) -> None:
        """Says that units share what they get among each other, as in a softmax.

        That fixes them, but for the classes of a model's head: new ones take their part
        from all old ones alike, which is what they are for.

        Args:
            expression: The units.
            kind: `"softmax"` or `"log_softmax"`.
            why: What the layer does, as in `fix`.
        """
        if not self._state.heads:
            self.fix(expression, why)
            return
        found = Competition(expression, kind, self.obstacle(why))
        self._state.competitions.setdefault(id(self._call), []).append(found)

    def obstacle(self, why: str) -> Obstacle:
        """The reason given to widths that this layer fixes."""
        return Obstacle(self._facts.path, f"({type(self.layer).__name__}) {why}")

    def apply(
        self,
        operation: Any,
        *args: Any,
        content: Content | None = None,
        shapes: list[tuple[int | None, ...]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Applies the rule of a layer that this one holds, as a cell or an activation.

        Args:
            operation: The layer.
            *args: What it is called with, axes in the place of tensors.
            content: What its inputs hold for units that fill. Defaults to what the
                outer layer's hold.
            shapes: The shapes of its outputs, where they aren't those of the outer
                layer. Defaults to `None`: they are.
            **kwargs: Likewise.

        Returns:
            What its rule returns; `None` where nothing is known of it.
        """
        rule = rule_for(operation)
        if rule is None:
            return None
        if isinstance(operation, keras.Layer):
            if not operation.built and internals.build_shapes(operation) is None:
                if _stateless(operation):
                    facts = Facts(operation, self._facts.path)
                    return self._run(rule, facts, content, shapes, args, kwargs)
                return None  # it may still get weights
            path = f"{self._facts.path}/{operation.name}"
            facts = self._state.facts_of(operation, path)
            facts.part_of = facts.part_of or self._facts.part_of or self._facts.path
            facts.given = facts.given or (args, kwargs)
            facts.calls += 1
        else:
            facts = Facts(operation, self._facts.path)
        outputs = self._run(rule, facts, content, shapes, args, kwargs)
        if not self._state.weights_covered(facts):
            return None
        return outputs

    def _run(
        self,
        rule: Any,
        facts: Facts,
        content: Content | None,
        shapes: list[tuple[int | None, ...]] | None,
        args: Any,
        kwargs: Any,
    ) -> Any:
        inner = RuleCall(self._state, self._call, facts, self._follow, content or self.content)
        inner._shapes = shapes or self._shapes
        outputs = rule(inner, *args, **kwargs)
        self._said, self._beside = inner._said, inner._beside
        return outputs

    def follow(self, function: Any, axes: Axes) -> Axes | None:
        """Follows units through a function of one tensor, by looking at what it does.

        Args:
            function: The function, made of Keras's operations.
            axes: The axes of its argument.

        Returns:
            Those of what it returns; `None` where that can't be seen.
        """
        path = f"{self._facts.path}/{getattr(function, '__name__', 'function')}"
        return self._follow(function, axes, self._call.outputs[0].dtype, path)

    def role(self, expression: Expression, role: str) -> bool:
        """Gives an axis of a variable that is used as a tensor its role.

        Args:
            expression: The axis, as it was given.
            role: `"makes"` or `"reads"`.

        Returns:
            Whether it is such an axis, and may have that role.
        """
        place, _ = self._state.variables.get(id(expression), (None, None))
        if place is None or place.axis.role not in (FOLLOWS, role):
            return False
        content = self.content
        if role == READS:
            self._state.reading.add((id(self._call), place))
            if place.axis.role == READS:
                content = content.join(place.axis.content)
        place.change(role=role, content=content)
        return True

    def share(self, expression: Expression, *tensors: int) -> None:
        """Says that units are summed over that two tensors hold, none of them a weight.

        So one of the tensors has to hold each unit's part only: what makes it gets
        the shares that otherwise those weights get that read units.

        Args:
            expression: The units.
            *tensors: The positions, among the inputs of the call, of the tensors
                that may.
        """
        self._state.demands.append((self._call, self._facts, expression, tensors))


def _stateless(layer: Any) -> bool:
    """Whether a layer that isn't built yet surely has no weights: one of Keras's own."""
    return internals.is_keras_layer(layer) and not layer.weights and not internals.has_build(layer)
