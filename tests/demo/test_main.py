"""`python -m keras_net2net`: what it prints, what it writes, and what it says of a mistake."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_net2net.demo import data, network, options, plot, table
from keras_net2net.demo.main import main
from keras_net2net.demo.training import Growth, Run

WIDEN_AT, DEEPEN_AT, EPOCHS = 2, 3, 5


def run(*arguments: object) -> int:
    """Runs the command in this process and returns its exit code."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def arrays(images: int = 96, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A small data set as an .npz file holds it: bright rows whose place is the class."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 64, (images, 6, 6), dtype="uint8")
    y = np.arange(images) % classes
    x[np.arange(images), 2 * y] += 128
    half = images // 2
    return {"x_train": x[:half], "y_train": y[:half], "x_test": x[half:], "y_test": y[half:]}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What one run of the command left behind."""

    code: int
    text: str
    output: Path

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table's epochs, without the growth."""
        rows = (line.split() for line in self.text.splitlines())
        return [
            [cell for cell in row if cell not in ("wider", "deeper")]
            for row in rows
            if len(row) in (7, 8) and row[0].isdigit() and "%" in row[-2]
        ]

    def progress(self, name: str) -> list[float]:
        """A value of Keras's own progress at the end of each epoch of both runs."""
        return [float(value) for value in re.findall(rf"{name}: ([\d.e+-]+)", self.text)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    output = tmp_path_factory.mktemp("demo") / "made" / "for me"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = run(
            *("--epochs", EPOCHS, "--widen-at", WIDEN_AT, "--deepen-at", DEEPEN_AT),
            *("--batch-size", 64, "--output", output),
        )
    return Shown(code, text.getvalue(), output)


def test_it_succeeds_and_says_where_its_files_are(shown: Shown) -> None:
    assert shown.code == 0
    for name in ("growth.png", "model.keras"):
        assert (shown.output / name).is_file()
        assert str(shown.output / name) in shown.text
    assert (shown.output / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_accuracies_are_those_of_keras_own_progress(shown: Shown) -> None:
    grown = [float(row[2].rstrip("%")) / 100 for row in shown.rows]
    scratch = [float(row[5].rstrip("%")) / 100 for row in shown.rows]
    assert [int(row[0]) for row in shown.rows] == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(grown + scratch, shown.progress("val_accuracy"), atol=1.01e-4)


def test_the_parameters_grow_at_the_epochs_asked_for(shown: Shown) -> None:
    narrow, wide, deep = (
        network.build((8, 8, 1), 10, filters).count_params()
        for filters in ((16, 32), (32, 64), (32, 64, 64))
    )
    grown = [int(row[1].replace(",", "")) for row in shown.rows]
    scratch = [int(row[4].replace(",", "")) for row in shown.rows]
    assert grown == [narrow] * 2 + [wide] + [deep] * 2
    assert scratch == [deep] * EPOCHS


def test_both_runs_make_the_same_number_of_steps(shown: Shown) -> None:
    steps = -(-1437 // 64)
    assert f"{steps * EPOCHS} steps each" in shown.text
    assert len(re.findall(rf"{steps}/{steps}\D.*val_loss", shown.text)) == 2 * EPOCHS


def test_the_loss_is_continuous_at_each_growth(shown: Shown) -> None:
    found = re.findall(
        r"(\w+) after epoch (\d): .* ([\d.]+) right before, ([\d.]+) right after", shown.text
    )
    assert [(kind, int(epoch)) for kind, epoch, *_ in found] == [
        ("wider", WIDEN_AT),
        ("deeper", DEEPEN_AT),
    ]
    for _, epoch, before, after in found:
        assert float(after) == pytest.approx(float(before), rel=1e-5)
        assert float(before) == pytest.approx(shown.progress("val_loss")[int(epoch) - 1], abs=1e-4)


def test_the_saved_model_has_the_last_validation_accuracy(shown: Shown) -> None:
    model = keras.models.load_model(shown.output / "model.keras")
    digits = data.load("digits", seed=0)
    measured = model.evaluate(*digits.test, verbose=0, return_dict=True)
    assert measured["accuracy"] == pytest.approx(
        shown.progress("val_accuracy")[EPOCHS - 1], abs=1e-4
    )
    assert measured["loss"] == pytest.approx(shown.progress("val_loss")[EPOCHS - 1], abs=1e-4)
    native = network.build((8, 8, 1), 10, (32, 64, 64))
    assert [w.shape for w in model.get_weights()] == [w.shape for w in native.get_weights()]
    assert int(model.optimizer.iterations) == -(-1437 // 64) * EPOCHS
    assert float(model.optimizer.learning_rate) == pytest.approx(0.002 / 2 / 2)


@pytest.mark.long
def test_the_command_learns_from_a_file_and_may_grow_twice_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **arrays())
    finished = command(tmp_path, "--data", "rows.npz", "--epochs", "2", "--output", "here")
    assert finished.returncode == 0, finished.stderr
    assert "rows: 48 training and 48 validation images of 6 x 6 x 1, 3 classes" in finished.stdout
    assert "wider and deeper after epoch 1: " in finished.stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"growth.png", "model.keras"}


def test_the_command_tells_of_a_mistake_in_one_line_with_exit_code_2(tmp_path: Path) -> None:
    finished = command(tmp_path, "--data", "absent.npz")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        "python -m keras_net2net: error: --data absent.npz: "
        "[Errno 2] No such file or directory: 'absent.npz'"
    )
    assert "Traceback" not in finished.stderr
    assert not finished.stdout
    assert not list(tmp_path.iterdir())


def command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "keras_net2net", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in vars(options.parse([])):
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"^  {flag} \S+\s+\w+ \w+", text, re.MULTILINE), flag


def test_the_growths_are_spread_over_the_epochs_unless_told() -> None:
    assert [(o.widen_at, o.deepen_at) for o in map(parsed, (2, 3, 12, 100))] == [
        (1, 1),
        (1, 2),
        (4, 8),
        (33, 67),
    ]


def parsed(epochs: int) -> argparse.Namespace:
    return options.parse(["--epochs", str(epochs)])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--epochs 1", "--epochs: expected an integer of at least 2, received '1'"),
        ("--epochs many", "--epochs: expected an integer of at least 2, received 'many'"),
        ("--epochs 3 --widen-at 3", "--deepen-at: expected integers of at most 2 with --epochs 3"),
        ("--deepen-at 12", "--deepen-at: expected integers of at most 11 with --epochs 12"),
        ("--deepen-at 0", "--deepen-at: expected an integer of at least 1, received '0'"),
        ("--factor 1", "--factor: expected a number above 1 and up to 16, received '1'"),
        ("--factor nan", "--factor: expected a number above 1 and up to 16, received 'nan'"),
        ("--batch-size 0", "--batch-size: expected an integer of at least 1, received '0'"),
        ("--learning-rate 0", "--learning-rate: expected a number above 0 and up to 1"),
        ("--rate-at-growth 2", "--rate-at-growth: expected a number above 0 and up to 1"),
        ("--seed -1", "--seed: expected an integer from 0 to 4294967295, received '-1'"),
        (f"--seed {10**400}", "--seed: expected an integer from 0 to 4294967295"),
        ("--nothing", "unrecognized arguments: --nothing"),
        ("--data cats", "expected 'digits', 'fashion_mnist' or an .npz file, received 'cats'"),
        ("--data absent.npz", "--data absent.npz: [Errno 2] No such file"),
        (f"--output {__file__}", f"--output {__file__}: [Errno 17] File exists"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, run(*arguments.split()), expected)


def assert_refused(capsys: pytest.CaptureFixture[str], code: int, expected: str) -> None:
    shown = capsys.readouterr()
    assert code == 2
    assert not shown.out
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("python -m keras_net2net: error: ")
    assert expected in shown.err


def without(key: str) -> Callable[[dict], dict]:
    return lambda good: {name: array for name, array in good.items() if name != key}


def having(key: str, change: Callable[[np.ndarray], object]) -> Callable[[dict], dict]:
    return lambda good: {**good, key: change(good[key])}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without("y_test"), "'y_test is not a file in the archive'"),
        (lambda good: {}, "'x_train is not a file in the archive'"),
        (having("x_train", lambda x: x[:, 0, 0]), "received images uint8 of shape (48,), with"),
        (having("x_test", lambda x: x[:0]), "received images uint8 of shape (0, 6, 6), with"),
        (having("x_test", lambda x: x[:, :4]), "received images uint8 of shape (48, 4, 6), with"),
        (having("x_train", lambda x: x.astype(str)), "received images <U"),
        (having("x_train", lambda x: x / 0.0 * 0), "expected finite images of one shape"),
        (having("x_train", lambda x: x.astype(object)), "Object arrays cannot be loaded"),
        (having("y_train", lambda y: y[:-1]), "with labels int64 of shape (47,), [0 1 2]"),
        (having("y_train", lambda y: y / 2), "with labels float64 of shape (48,), [0. 0.5 1. ]"),
        (having("y_train", lambda y: y + 1), "with labels int64 of shape (48,), [1 2 3]"),
        (having("y_train", lambda y: y * 0), "at least two classes; received images uint8"),
        (having("y_test", lambda y: y + 1), "with labels int64 of shape (48,), [1 2 3]"),
        (having("y_test", lambda y: y - 5), "with labels int64 of shape (48,), [-5 -4 -3]"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_a_malformed_file_is_one_line_and_exit_code_2(
    damage: Callable[[dict], dict],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **damage(arrays()))
    assert_refused(capsys, run("--data", path, "--output", tmp_path), expected)


@pytest.mark.parametrize("content", ["nothing", "text", "cut off", "one array"])
def test_a_file_that_is_no_archive_is_one_line_and_exit_code_2(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    if content == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes({"nothing": b"", "text": b"x,y\n1,2\n", "cut off": whole[:-200]}[content])
    assert_refused(capsys, run("--data", path), f"error: --data {path}: ")


def test_a_damaged_archive_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    assert_refused(capsys, run("--data", path), f"error: --data {path}: ")


def test_labels_may_stand_in_a_column_and_images_may_have_channels(tmp_path: Path) -> None:
    good = arrays()
    for name in ("x_train", "x_test"):
        good[name] = np.stack([good[name]] * 3, axis=-1) / 255
    for name in ("y_train", "y_test"):
        good[name] = good[name][:, None]
    np.savez(tmp_path / "good.npz", **good)
    loaded = data.load(str(tmp_path / "good.npz"))
    images, _ = loaded.train
    assert images.shape == (48, 6, 6, 3)
    assert loaded.test[1].shape == (48,)
    assert loaded.classes == 3
    assert images.mean() == pytest.approx(0, abs=1e-5)
    assert images.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("package", ["matplotlib", "rich", "sklearn"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(
        capsys,
        run(),
        f'needs {package}, which is not installed: pip install -e ".[demo]"',
    )


def test_data_that_keras_cannot_load_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_data() -> None:
        raise Exception("URL fetch failure on somewhere:\nno network")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", load_data)
    assert_refused(
        capsys,
        run("--data", "fashion_mnist"),
        "--data fashion_mnist: URL fetch failure on somewhere: no network",
    )


def runs() -> tuple[Run, Run]:
    """Two runs with made-up numbers, for what only shows them."""
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    def made(parameters: list[int], loss: list[float], growths: list[Growth]) -> Run:
        return Run(model, parameters, loss, [1 - value / 4 for value in loss], loss, growths)

    growths = [Growth(1, "wider", 100, 1200, 2.0, 2.0), Growth(2, "deeper", 1200, 3400, 1.0, 1.0)]
    return made([100, 1200, 3400], [2.0, 1.0, 0.5], growths), made([3400] * 3, [1.5, 0.8, 0.6], [])


def test_the_picture_shows_both_runs_and_every_growth() -> None:
    grown, scratch = runs()
    figure = plot.draw(grown, scratch, "a title")
    loss, accuracy = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in loss.lines}
    assert curves["grown"] == [2.0, 1.0, 0.5]
    assert curves["from scratch"] == [1.5, 0.8, 0.6]
    curves = {line.get_label(): list(line.get_ydata()) for line in accuracy.lines}
    assert curves["grown"] == [0.5, 0.75, 0.875]
    for axes in (loss, accuracy):
        marked = {line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"}
        assert marked == {1, 2}
    assert [text.get_text() for text in loss.texts] == [
        "wider: 100 → 1,200 parameters\nloss 2.00000 → 2.00000",
        "deeper: 1,200 → 3,400 parameters\nloss 1.00000 → 1.00000",
    ]


def test_the_picture_survives_a_run_that_diverged(tmp_path: Path) -> None:
    grown, scratch = runs()
    scratch = dataclasses.replace(scratch, loss=[1.5, float("nan"), float("nan")])
    plot.draw(grown, scratch, "a title").savefig(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_table_fits_a_terminal_of_80_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    grown, scratch = runs()
    both = dataclasses.replace(grown.growths[0], kind="wider and deeper")
    with contextlib.redirect_stdout(io.StringIO()) as text:
        table.show(dataclasses.replace(grown, growths=[both]), scratch)
    assert "…" not in text.getvalue()
    assert "wider" in text.getvalue()
    assert "deeper" in text.getvalue()
