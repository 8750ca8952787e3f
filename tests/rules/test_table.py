"""Every layer and operation of the Keras that is installed has a state, and the page says which."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
from keras import layers, ops

from keras_net2net.rules import table
from keras_net2net.widths.registry import FOLLOWED, OPENED, REFUSED, opened, refuse, state_of

pytestmark = pytest.mark.pure

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def targets():
    named = {f"ops.{name}": function for name, function in table.symbolic_operations().items()}
    return {**table.layer_classes(), **named}


def test_every_layer_and_operation_has_a_state():
    without = {name for name, target in targets().items() if state_of(target) is None}
    assert not without


def test_layers_and_operations_are_all_found():
    found = targets()
    for name in ("Dense", "Lambda", "RandomFlip", "ops.add", "ops.get_item", "ops.image.resize"):
        assert name in found
    for name in ("ops.silu", "ops.swish", "ops.batch_normalization", "ops.norm", "ops.map"):
        assert name in found
    for name in ("Layer", "Wrapper", "InputSpec", "Input", "ops.zeros", "ops.shape"):
        assert name not in found


def recorded(function):
    """Whether a function records a node when it gets a symbolic tensor, by trying."""
    for arguments in ((keras.Input((3, 4)),), (keras.Input((3, 4)), keras.Input((3, 4)))):
        try:
            results = keras.tree.flatten(function(*arguments))
        except Exception:
            continue
        if any(isinstance(x, keras.KerasTensor) for x in results):
            return True
    return False


def test_no_operation_that_records_a_node_is_missed():
    found = table.symbolic_operations()
    known = {id(function) for function in found.values()}
    missed = {
        name
        for module in (ops, ops.image, ops.linalg, ops.nn, ops.numpy)
        for name, function in vars(module).items()
        if callable(function)
        and id(function) not in known
        and name not in table.CONSTANTS
        and recorded(function)
    }
    assert not missed


def test_the_page_is_that_of_the_rules():
    if not hasattr(ops, "adaptive_max_pool") or not hasattr(layers, "ReversibleEmbedding"):
        pytest.skip("the page is made with a newer Keras")
    assert PAGE.read_text() == table.coverage()


def test_every_layer_and_operation_is_on_the_page():
    named = set(re.findall(r"`([\w.]+)`", PAGE.read_text()))
    assert {*table.layer_classes(), *table.symbolic_operations()} <= named


def test_the_command_writes_the_page(tmp_path, capsys):
    table.main(["--output", str(tmp_path / "coverage.md")])
    assert (tmp_path / "coverage.md").read_text() == table.coverage()
    assert not capsys.readouterr().out
    table.main([])
    assert capsys.readouterr().out == table.coverage()


def test_the_states_of_some():
    assert state_of(layers.Dense).kind == state_of(ops.swish).kind == FOLLOWED
    assert state_of(layers.Masking).kind == state_of(ops.ravel).kind == REFUSED
    assert state_of(layers.Masking).summary == "decides by all units of a step whether to mask it"
    assert state_of(keras.Layer) is None
    assert state_of(ops.zeros) is None


def test_a_state_is_registered_by_a_call():
    class Odd(keras.Layer):
        pass

    class Composite(keras.Layer):
        pass

    refuse("does something odd to units", Odd)
    opened("Two Dense layers.", Composite)
    assert state_of(Odd).kind == REFUSED
    assert state_of(Composite).kind == OPENED
    with pytest.raises(ValueError, match=r"a layer class or for a function of `keras\.ops`"):
        refuse("is no operation", keras.activations.relu)
