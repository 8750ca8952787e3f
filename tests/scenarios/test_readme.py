"""What the README says is what is there: its code runs, and its links lead somewhere."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def build():
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, activation="relu", name="conv1"),
        keras.layers.Conv2D(4, 3, activation="relu", name="conv2"),
        keras.layers.Flatten(),
        keras.layers.Dense(6, activation="relu", name="fc"),
        keras.layers.Dense(6, activation="relu", name="dense_hidden"),
        keras.layers.Dense(2, name="logits"),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = {
        "model": build(),
        "teacher": build(),
        "x": rng.standard_normal((20, 8, 8, 3)).astype("float32"),
        "y": rng.integers(0, 2, 20),
    }
    fit, use, rule = BLOCKS
    used = names | {"n2n": __import__("keras_net2net"), "keras": keras}
    exec(use.replace("units=64", "units=16"), used)
    assert "conv1: 4 -> 16" in capsys.readouterr().out
    assert used["report"].difference < 1e-5
    assert used["student"].get_layer("fc").units == 512
    assert (tmp_path / "run" / "growth.json").exists()
    exec(fit.replace("units=64", "units=8"), names)
    assert [report.epoch for report in names["growth"].history] == [4, 8]
    assert (
        names["model"].get_layer("conv2_deeper_1").filters
        == names["model"].get_layer("conv2").filters
    )
    exec(rule, names)
    names["n2n"].testing.check_rule(names["Gate"](), (3, 4), policies=[])
    inputs = keras.Input((4,))
    hidden = names["Gate"]()(keras.layers.Dense(6, name="hidden")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    names["n2n"].grow(model, names["n2n"].Wider("hidden", 9), seed=0)
    assert model.layers[2].gate.shape == (9,)


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./]+)\)", README))
def test_a_link_leads_to_a_file(link):
    assert (Path(__file__).parents[2] / link).exists()
