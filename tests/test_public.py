"""The public face: names, signatures, and what has been saved with them."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_net2net as n2n
from keras_net2net.growth.rates import Rewound, Warming

# Made by the package alone, which may give them more: these attributes are for users.
ATTRIBUTES = {
    n2n.GrowthReport: (
        "difference, epoch, headline, notes, operations, parameters_after, parameters_before, "
        "plan, seconds, step, summary, training_difference, undone"
    ),
    n2n.Plan: "apply_to, empty, parameters_after, parameters_before, seed, steps, summary",
    n2n.rules.RuleCall: (
        "apply, configure, configure_argument, fix, follow, new_units, setting, shape_of, treat, "
        "unify, units, weight"
    ),
}
# Every public name, and the arguments with which it is called; "" for what isn't called by users.
PUBLIC: dict[str, dict[str, str]] = {
    "keras_net2net": {
        "Deeper": (
            "(self, layers=None, count=1, *, form='identity', between=None, "
            "batch_norm=None, activation=None, units=None, rank=None, calibration=None)"
        ),
        "DeeperPairs": "(self, layers=None, count=1, *, batch_norm=None, calibration=None)",
        "GrowOnPlateau": (
            "(self, operations, monitor='val_loss', mode='auto', patience=3, "
            "min_delta=0, cooldown=0, *, cycle=False, max_growths=None, "
            "max_params=None, revert=False, seed=None, optimizer_state='reset', "
            "learning_rate=None, verify=True, calibration=None, freeze=None, log=None, "
            "verbose=1)"
        ),
        "GrowthError": "(self, problem, why=None, instead=None, *, received=None)",
        "GrowthReport": "",
        "GrowthScheduler": (
            "(self, schedule, *, seed=None, optimizer_state='reset', "
            "learning_rate=None, verify=True, calibration=None, freeze=None, "
            "across_fits=False, log=None, verbose=1)"
        ),
        "LargerKernel": "(self, layers=None, kernel_size=None)",
        "Narrower": (
            "(self, layers=None, units=None, *, factor=None, round_to=1, keep='duplicates')"
        ),
        "NewClasses": "(self, layers, classes=None, *, start='zeros', mass=0.0001)",
        "Plan": "",
        "Rewarm": "(self, steps, start=0.1)",
        "Rewind": "(self, to=0)",
        "Wider": (
            "(self, layers=None, units=None, *, factor=None, round_to=1, "
            "new_units='replicate', shares='random', noise=0.0)"
        ),
        "clone": "(model)",
        "clone_and_grow": (
            "(teacher, operations, *, seed=None, optimizer_state=None, "
            "learning_rate=None, verify=True, calibration=None, freeze=None)"
        ),
        "errors": "",
        "grow": (
            "(model, operations, *, seed=None, optimizer_state='reset', "
            "learning_rate=None, verify=True, calibration=None, freeze=None, "
            "callbacks=None)"
        ),
        "net2deeper": (
            "(teacher, layers, count=1, *, seed=None, optimizer_state=None, "
            "learning_rate=None, verify=True, **options)"
        ),
        "net2wider": (
            "(teacher, layers=None, units=None, *, seed=None, optimizer_state=None, "
            "learning_rate=None, verify=True, **options)"
        ),
        "plan": "(model, operations, *, seed=None, calibration=None)",
        "replay": "(model, log, *, epoch=None, verify=True, calibration=None)",
        "rules": "",
        "testing": "",
        "unfreeze": "(model)",
        "upgrade_weights": "(path, build, log, output, *, verify=True, calibration=None)",
    },
    "keras_net2net.rules": {
        "RuleCall": "",
        "follows": "(expression, *, silent=False)",
        "makes": "(expression)",
        "reads": "(expression)",
        "register_rule": "(*targets, like=None)",
        "treatments": "",
    },
    "keras_net2net.errors": {
        "CheckError": "(self, problem, why=None, instead=None, *, received=None)",
        "CodeError": "(self, *parts, path='', reason='', **received)",
        "ConflictError": "(self, problem, why=None, instead=None, *, received=None)",
        "FixedWidthError": "(self, problem, why=None, instead=None, *, received=None)",
        "GrowthError": "(self, problem, why=None, instead=None, *, received=None)",
        "LogError": "(self, problem, why=None, instead=None, *, received=None)",
        "NotIdentityError": "(self, problem, why=None, instead=None, *, received=None)",
        "SizeError": "(self, problem, why=None, instead=None, *, received=None)",
        "UnknownLayerError": "(self, problem, why=None, instead=None, *, received=None)",
        "VerificationError": "(self, problem, why=None, instead=None, *, received=None)",
    },
    "keras_net2net.testing": {
        "POLICIES": "",
        "check_model": (
            "(build, growths, *, inputs=None, tolerance=1e-06, native=True, save=True, train=True)"
        ),
        "check_native": "(model)",
        "check_rule": (
            "(layer, input_shape, *, call=None, dtype='float32', axis=None, fixed=(), "
            "tolerance=1e-06, policies=('mixed_float16', 'mixed_bfloat16'), "
            "data_formats=True, save=True, train=True)"
        ),
        "check_same": "(new, old, tolerance, when, modes=1)",
        "check_training": "(model, x)",
        "custom_objects": "(*given)",
        "flat_layers": "(model, path='')",
        "largest_difference": "(first, second)",
        "outputs": "(model, x, modes=(False,))",
        "random_inputs": "(model, seed=0, batch=4)",
        "randomize": "(model, seed=0)",
        "shapes_of": "(model)",
    },
}


def public(module: types.ModuleType) -> dict[str, Any]:
    """What a module offers: what it lists, or the errors that it defines."""
    listed = getattr(module, "__all__", ())
    return {
        name: thing
        for name, thing in vars(module).items()
        if name in listed or (not listed and isinstance(thing, type) and name.endswith("Error"))
    }


def signature(thing: Any) -> str:
    """The arguments and their defaults, without types."""
    if not callable(thing) or thing in ATTRIBUTES:
        return ""
    given = inspect.signature(thing.__init__ if isinstance(thing, type) else thing)
    bare = inspect.Parameter.empty
    parameters = [one.replace(annotation=bare) for one in given.parameters.values()]
    return str(inspect.Signature(parameters))


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_and_their_arguments_are_those_that_users_know(module: str) -> None:
    offered = public(__import__(module, fromlist=["_"]))
    assert {name: signature(thing) for name, thing in sorted(offered.items())} == PUBLIC[module]


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_what_users_are_given_has_the_attributes_that_they_know(kind: type) -> None:
    names = {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}
    assert set(ATTRIBUTES[kind].split(", ")) <= names


# As written before the package had rooms: the modules were others, the names were these.
SAVED = [
    (
        n2n.Wider("attention", {"heads": 8}, shares="even"),
        "operations.wider",
        {
            "layers": "attention",
            "units": {"heads": 8},
            "factor": None,
            "round_to": 1,
            "new_units": "replicate",
            "shares": "even",
            "noise": 0.0,
        },
    ),
    (
        n2n.Deeper("conv1"),
        "operations.deeper",
        {
            "layers": "conv1",
            "count": 1,
            "form": "identity",
            "between": None,
            "batch_norm": None,
            "activation": None,
            "units": None,
            "rank": None,
        },
    ),
    (
        n2n.DeeperPairs(),
        "operations.pairs",
        {"layers": None, "count": 1, "batch_norm": None},
    ),
    (
        n2n.LargerKernel("conv1", 5),
        "operations.larger_kernel",
        {"layers": "conv1", "kernel_size": 5},
    ),
    (
        n2n.Narrower("fc", 4),
        "operations.narrower",
        {"layers": "fc", "units": 4, "factor": None, "round_to": 1, "keep": "duplicates"},
    ),
    (
        n2n.NewClasses("predictions", 12),
        "operations.new_classes",
        {"layers": "predictions", "classes": 12, "start": "zeros", "mass": 0.0001},
    ),
    (n2n.Rewind(), "rates", {"to": 0}),
    (n2n.Rewarm(5), "rates", {"steps": 5, "start": 0.1}),
    (
        Rewound(keras.optimizers.schedules.CosineDecay(0.1, 100), 40),
        "rates",
        {
            "schedule": {
                "module": "keras.optimizers.schedules",
                "class_name": "CosineDecay",
                "config": {
                    "initial_learning_rate": 0.1,
                    "decay_steps": 100,
                    "alpha": 0.0,
                    "name": "CosineDecay",
                    "warmup_target": None,
                    "warmup_steps": 0,
                },
                "registered_name": None,
            },
            "shift": 40,
        },
    ),
    (Warming(0.1, 3, 5, 0.01), "rates", {"rate": 0.1, "begin": 3, "steps": 5, "start": 0.01}),
]


@pytest.mark.parametrize(
    ("expected", "module", "config"), SAVED, ids=[type(one).__name__ for one, *_ in SAVED]
)
def test_what_was_saved_before_the_modules_moved_is_read(
    expected: Any, module: str, config: dict[str, Any]
) -> None:
    name = type(expected).__name__
    read = keras.saving.deserialize_keras_object(
        {
            "module": f"keras_net2net.{module}",
            "class_name": name,
            "config": config,
            "registered_name": f"keras_net2net>{name}",
        }
    )
    assert type(read) is type(expected)
    assert read.get_config() == expected.get_config() == config
    if not isinstance(expected, keras.optimizers.schedules.LearningRateSchedule):
        assert read == expected


def test_every_registered_class_is_among_them() -> None:
    registered = keras.saving.get_custom_objects()
    ours = {name for name in registered if name.startswith("keras_net2net>")}
    assert ours == {f"keras_net2net>{type(one).__name__}" for one, *_ in SAVED}


def test_a_log_that_was_written_before_the_modules_moved_leads_to_the_same_weights() -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="relu", name="fc"),
            layers.Dense(2, name="out"),
        ]
    )
    random = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(random.standard_normal(tuple(weight.shape)).astype("float32"))
    log = Path(__file__).parent / "training" / "resume" / "data" / "before_the_rooms.json"
    reports = n2n.replay(model, log)
    # Two other growths of the log were undone.
    assert [(one.epoch, one.parameters_after) for one in reports] == [(1, 155)]
    sums = [float(np.abs(weight).sum()) for weight in model.get_weights()]
    expected = [18.498491287231445, 8.93622875213623, 9, 0, 11.309142112731934, 1.01679527759552]
    np.testing.assert_allclose(sums, expected, rtol=1e-6)
