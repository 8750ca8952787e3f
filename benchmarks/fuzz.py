"""Random models under random growths: is the function preserved, or the growth refused?

Each example has a seed of its own: a random model over all layers that are followed,
and some that aren't, grows once or twice. Its outputs at inference and in training
mode must stay what they were, computed in float64, and its configuration must build
the same model; or the growth must be refused with a `GrowthError` that leaves the
model as it was. Anything else is a failure, which is reduced and shown.

    KERAS_BACKEND=torch python benchmarks/fuzz.py --examples 1000 --seed 0
    KERAS_BACKEND=jax python benchmarks/fuzz.py --minutes 30 --output benchmarks/fuzz.md
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import os
import platform
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the generator is the tests' own
MOST = 12  # rows of each table of reasons


def main() -> None:
    """Runs the examples and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="how many models")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first example")
    parser.add_argument("--minutes", type=float, help="stop after that time")
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    parser.add_argument("--show", action="store_true", help="print every example")
    parser.add_argument("--output", type=Path, help="a Markdown file for the summary")
    options = parser.parse_args()

    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tests import random_models

    precision = contextlib.nullcontext if options.float32 else random_models.double_precision
    before = machine_state()
    started = time.perf_counter()
    outcomes: list[Any] = []
    failures: list[str] = []
    with precision():
        for number in range(options.examples):
            minutes = (time.perf_counter() - started) / 60
            if options.minutes is not None and minutes > options.minutes:
                break
            outcome, failure = example(options.seed + number)
            outcomes.append(outcome)
            if options.show:
                print("\n".join([f"seed {options.seed + number}", *outcome.lines, *outcome.kinds]))
            if failure:
                failures.append(failure)
                print(failure, flush=True)
            if number % 50 == 49:
                text = f"{number + 1} of {options.examples}, {len(failures)} failures"
                print(text, file=sys.stderr, flush=True)
                clear()
    seconds = time.perf_counter() - started
    text = summary(options, outcomes, failures, seconds, before)
    print(text)
    if options.output:
        write_section(options.output, text)
    if failures:
        sys.exit(1)


def example(seed: int) -> tuple[Any, str]:
    """Runs one example.

    Args:
        seed: Its seed.

    Returns:
        Its outcome, and a report of the failure, empty if there was none.
    """
    import keras

    from tests import random_models

    outcome = random_models.Outcome()
    source = random_models.Seeded(seed)
    kind, error = attempt(source, outcome)
    keras.backend.clear_session()
    if not kind:
        return outcome, ""
    outcome.kinds.append("failed")
    choices = random_models.shrink(
        seed, source.choices, lambda other: attempt(other, random_models.Outcome())[0] == kind, 80
    )
    reduced = random_models.Outcome()
    attempt(random_models.Seeded(seed, choices, "zero"), reduced)
    backend = keras.backend.backend()
    lines = [
        f"seed {seed}: {error}",
        f"  KERAS_BACKEND={backend} python benchmarks/fuzz.py --examples 1 --seed {seed}",
        f"  reduced: check(Seeded({seed}, {choices}, 'zero'))",
        *(f"    {line}" for line in reduced.lines),
    ]
    return outcome, "\n".join(lines)


def attempt(source: Any, outcome: Any) -> tuple[str, str]:
    """The kind of the failure of one example and its message; empty if there is none."""
    from tests import random_models

    try:
        random_models.check(source, outcome)
    except random_models.Mistake as error:
        return f"Mistake {str(error)[:22]}", str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return f"{type(error).__name__} {where}", f"{type(error).__name__} at {where}: {error}"
    return "", ""


def clear() -> None:
    """Frees what the backend keeps of models that are gone."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
    gc.collect()


def summary(
    options: Any, outcomes: list[Any], failures: list[str], seconds: float, before: str
) -> str:
    """The summary as Markdown."""
    import keras

    from keras_net2net.rules.registry import describe, rules

    kinds = collections.Counter(kind for one in outcomes for kind in one.kinds)
    grown = kinds.pop("grown", 0)
    nothing, failed = kinds.pop("nothing to do", 0), kinds.pop("failed", 0)
    discarded = sum(kinds.pop(key) for key in list(kinds) if key.startswith("discarded"))
    errors = collections.Counter({key.split(":")[0]: 0 for key in kinds})
    for key, count in kinds.items():
        errors[key.split(":")[0]] += count
    inside = collections.Counter(name for one in outcomes for name in one.types)
    changed = collections.Counter(name for one in outcomes for name in one.changed)
    followed = sorted(
        {name for name, rule in rules() if "." not in name and describe(rule).kind == "follows"}
    )
    opened = sorted({"Residual", "GatedProjection", "Encoder", "Subclassed"} & set(inside))
    operations = sorted(name for name in inside if name.startswith("ops."))
    missing = [name for name in followed if not inside[name]]
    difference = max((one.difference for one in outcomes), default=0.0)
    first, last = options.seed, options.seed + len(outcomes) - 1
    arguments = f"--examples {len(outcomes)} --seed {first}" + " --float32" * options.float32
    backend = keras.backend.backend()
    lines = [
        f"## {backend}",
        "",
        f"`KERAS_BACKEND={backend} python benchmarks/fuzz.py {arguments}`: {len(outcomes)} models "
        f"(seeds {first} to {last}), {grown + sum(kinds.values()) + nothing + failed} growths in "
        f"{seconds / 60:.1f} min: **{grown} grown, {sum(kinds.values())} refused, "
        f"{failed} failures**; {nothing} had nothing to do, {discarded} models were discarded "
        "(Keras doesn't run them, or their outputs are too large).",
        "",
        f"The largest difference of the outputs, relative to them, in "
        f"{'float32' if options.float32 else 'float64'}, in both modes: {difference:.1e}.",
        "",
        "| refused with | growths |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in errors.most_common()),
        "",
        "| the most frequent reasons | growths |",
        "|---|---|",
        *(f"| {escape(name)} | {count} |" for name, count in kinds.most_common(MOST)),
        "",
        "Layers by how many models they were part of that grew, and, in brackets, in how many "
        "they changed: "
        + ", ".join(f"{name} {inside[name]} ({changed[name]})" for name in (*followed, *opened))
        + ".",
        "",
        f"Never in a model that grew: {', '.join(missing) or 'none'}.",
        "",
        "Operations, likewise: "
        + ", ".join(f"{name.removeprefix('ops.')} {inside[name]}" for name in operations)
        + ".",
        "",
        "Failures: " + ("none." if not failures else ""),
        *(f"\n```\n{failure}\n```" for failure in failures),
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {versions()}. Before: {before}. After: {machine_state()}.",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as a cell of a table."""
    return text.replace("|", "\\|")


def write_section(path: Path, text: str) -> None:
    """Writes the section of one backend, and keeps those of the others."""
    heading = text.split("\n", 1)[0]
    about = __doc__.split("\n\n")[1]
    intro = f"# Random models under random growths\n\n{about}\n"
    old = path.read_text() if path.exists() else intro
    sections = old.split("\n## ")
    kept = [s for i, s in enumerate(sections) if i == 0 or f"## {s}".split("\n", 1)[0] != heading]
    path.write_text("\n## ".join([*(s.rstrip("\n") + "\n" for s in kept), text[3:]]))


def machine_state() -> str:
    """The load of the machine, and the time."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d %H:%M')}, load {load}"


def versions() -> str:
    """The versions of what was tested."""
    import keras
    import numpy

    backend = keras.backend.backend()
    module = __import__(backend)
    return f"keras {keras.__version__}, {backend} {module.__version__}, numpy {numpy.__version__}"


if __name__ == "__main__":
    main()
