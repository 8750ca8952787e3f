"""The code of the pages under `docs/` runs, and the reference names all that is public."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_net2net as n2n
from tests.support.helpers import BACKEND

# The pages are the same for all backends, and JAX compiles a minute for them.
pytestmark = [pytest.mark.long] if BACKEND == "jax" else []

ROOT = pathlib.Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```python\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
# One page for each module that is public.
REFERENCE = {
    "keras_net2net": n2n,
    "rules": n2n.rules,
    "errors": n2n.errors,
    "testing": n2n.testing,
}

# What a page takes for granted: a small regression model, its data, and other callbacks.
x = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
y = np.random.default_rng(1).standard_normal((16, 2)).astype("float32")


def build_and_compile():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(8, activation="relu", name="fc"),
        keras.layers.Dense(2, name="out"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01, name="adam"), "mse")
    return model


def blocks(page: str) -> list[str]:
    found = FENCE.findall((ROOT / "docs" / page).read_text())
    return [textwrap.dedent(code) for _, code in found]


def run(page: str, codes: list[str], names: dict) -> None:
    for number, code in enumerate(codes):
        exec(compile(code, f"{page}, block {number}", "exec"), names)


def given() -> dict:
    stop = keras.callbacks.EarlyStopping(restore_best_weights=True)
    data = {"x": x, "y": y, "a": x, "b": y}
    functions = {"build": build_and_compile, "build_and_compile": build_and_compile}
    modules = {"keras": keras, "np": np, "n2n": n2n}
    return {"model": build_and_compile(), "stop": stop, **data, **functions, **modules}


@pytest.mark.parametrize("page", ["getting_started.md", "operations.md", "your_own_rule.md"])
def test_the_examples_of_a_page_run(page):
    run(page, blocks(page), {"keras": keras, "np": np, "n2n": n2n})


def test_the_examples_of_how_to_grow_run():
    names = given()
    run("when_and_how_to_grow.md", blocks("when_and_how_to_grow.md"), names)
    assert [layer.trainable for layer in names["model"].layers] == [True, True, True]


def test_the_examples_of_callbacks_run():
    run("callbacks.md", [code.replace("10", "1") for code in blocks("callbacks.md")], given())


def test_the_examples_of_going_on_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed, orbax, *older = (code.replace("epochs=100", "epochs=6") for code in blocks("resume.md"))
    names = given() | {"pathlib": pathlib}
    # A loss that never improves by enough grows the model, and undoes it.
    run("resume.md", [killed.replace("revert=True", "revert=True, min_delta=9, patience=1")], names)
    assert names["growth"].history[0].undone is not None

    pathlib.Path("run/growth.json").unlink()
    growth = n2n.GrowthScheduler({1: n2n.Wider("fc", 12)}, log="run/growth.json", verbose=0)
    model = build_and_compile()
    model.fit(x, y, verbose=0)
    model.save_weights("before.weights.h5")
    chain = [growth]
    if importlib.util.find_spec("orbax") and hasattr(keras.callbacks, "OrbaxCheckpoint"):
        chain.append(keras.callbacks.OrbaxCheckpoint("run/orbax"))
    model.fit(x, y, epochs=2, verbose=0, callbacks=chain)
    run("resume.md", older, names)
    assert names["model"].get_layer("fc").units == 12
    assert pathlib.Path("after.weights.h5").exists()
    if len(chain) > 1:
        run("resume.md", [orbax], names)


# What the pages' blocks on distributed training stand in: before, after, and which of them.
DISTRIBUTED = {
    "tensorflow": (
        "import tensorflow as tf",
        ["", "step(x, y)"],
        [0, 3],
    ),
    "jax": (
        "",
        [
            "model = build()",
            "model.compile('adam', 'mse')",
            "n2n.grow(model, [n2n.Wider('fc', 16), n2n.Deeper('fc')])",
            "assert 'model' in str(model.get_layer('fc_deeper_1').kernel.value.sharding.spec)",
            "model.fit(x, y, verbose=0)",
        ],
        [1],
    ),
    "torch": (
        "import os, torch\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "torch.distributed.init_process_group('gloo', 'file://' + os.path.abspath('store'), "
        "rank=0, world_size=1)\n"
        "model = build()",
        ["assert wrapped(x).shape == (16, 2)", "torch.distributed.destroy_process_group()"],
        [2],
    ),
}


def test_the_examples_of_distributed_training_run(tmp_path):
    before, after, which = DISTRIBUTED[BACKEND]
    assert sorted(n for _, _, some in DISTRIBUTED.values() for n in some) == [0, 1, 2, 3]
    codes = [blocks("distributed.md")[n] for n in which]
    start = "from tests.scenarios.test_docs import *\nbuild = build_and_compile\n"
    (tmp_path / "script.py").write_text("\n".join([start, before, *codes, *after]))
    flags = "--xla_force_host_platform_device_count=4" if BACKEND == "jax" else ""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]


def test_every_page_with_code_is_tested():
    with_code = {
        path.name for path in (ROOT / "docs").glob("*.md") if FENCE.search(path.read_text())
    }
    tested = re.findall(r'"(\w+\.md)"', pathlib.Path(__file__).read_text())
    assert with_code <= set(tested)


@pytest.mark.parametrize("page", REFERENCE)
def test_the_reference_names_all_that_is_public(page):
    module = REFERENCE[page]
    named = re.findall(
        rf"^::: {module.__name__}\.(\w+)", (ROOT / f"docs/api/{page}.md").read_text(), re.M
    )
    public = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and issubclass(thing, Exception)
    ]
    modules = {name for name in public if inspect.ismodule(getattr(module, name))}
    assert modules <= {*REFERENCE, *named}  # each has a page, or its place on this one
    assert sorted(named) == sorted(set(public) - (modules - set(named)))
    for name in named:
        assert inspect.getdoc(getattr(module, name))
