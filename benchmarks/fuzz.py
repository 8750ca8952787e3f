"""Random models under random growths: is the function preserved, or the growth refused?

Each example has a seed of its own: a random model over all layers that are followed,
and some that aren't, grows once or twice. Its outputs at inference and in training
mode must stay what they were, computed in float64, and its configuration must build
the same model; or the growth must be refused with a `GrowthError` that leaves the
model as it was. Anything else is a failure, which is reduced and shown.

    KERAS_BACKEND=torch python benchmarks/fuzz.py --examples 1000 --seed 0
    KERAS_BACKEND=jax python benchmarks/fuzz.py --minutes 30 --seed 5000 --record jax-5000.json
    python benchmarks/fuzz.py --merge *.json --output benchmarks/fuzz.md
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))  # the generator is the tests' own
import keras

from benchmarks.machine import machine, machine_state, versions
from keras_net2net.widths.registry import describe, rules
from tests.support import random_models

MOST = 12  # rows of each table of reasons


def main() -> None:
    """Runs the examples and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="how many models")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first example")
    parser.add_argument("--minutes", type=float, help="stop after that time")
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    parser.add_argument("--show", action="store_true", help="print every example")
    parser.add_argument("--record", type=Path, help="a JSON file for the outcome, to merge")
    parser.add_argument("--merge", type=Path, nargs="+", help="such files: no model is run")
    parser.add_argument("--output", type=Path, help="the Markdown file to write when merging")
    options = parser.parse_args()
    if options.merge:
        text = summary([json.loads(path.read_text()) for path in options.merge])
        if options.output:
            text = keep_findings(options.output, text)
            options.output.write_text(text)
        print(text)
        return

    warnings.simplefilter("ignore")
    precision = contextlib.nullcontext if options.float32 else random_models.double_precision
    before, code = machine_state(), commit()
    started = time.perf_counter()
    outcomes: list[Any] = []
    failures: list[str] = []
    with precision(), random_models.quick_initializers():
        gc.collect()
        gc.freeze()  # what was imported is never garbage, and takes long to look through
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
    made = record(options, outcomes, failures, seconds, before, code)
    if options.record:
        options.record.write_text(json.dumps(made, indent=1))
    print(summary([made]))
    if failures:
        sys.exit(1)


def example(seed: int) -> tuple[Any, str]:
    """Runs one example.

    Args:
        seed: Its seed.

    Returns:
        Its outcome, and a report of the failure, empty if there was none.
    """
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
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
    gc.collect()


def record(
    options: Any,
    outcomes: list[Any],
    failures: list[str],
    seconds: float,
    before: str,
    code: str,
) -> dict[str, Any]:
    """What came of the examples, as JSON."""
    followed = sorted(
        {name for name, rule in rules() if "." not in name and describe(rule).kind == "follows"}
    )
    kinds = collections.Counter(kind for one in outcomes for kind in one.kinds)
    return {
        "backend": keras.backend.backend(),
        "commit": code,
        "precision": "float32" if options.float32 else "float64",
        "seed": options.seed,
        "examples": len(outcomes),
        "grown models": sum("grown" in one.kinds for one in outcomes),
        "kinds": kinds,
        "inside": collections.Counter(name for one in outcomes for name in one.types),
        "changed": collections.Counter(name for one in outcomes for name in one.changed),
        "followed": followed,
        "difference": max((one.difference for one in outcomes), default=0.0),
        "failures": failures,
        "seconds": seconds,
        "machine": f"{machine()}, {versions()}",
        "before": before,
        "after": machine_state(),
    }


OUTSIDE = ("grown", "nothing to do", "failed", "discarded")  # kinds that aren't refusals


def refusals(kinds: dict[str, int]) -> collections.Counter[str]:
    """How many growths were refused, by reason."""
    return collections.Counter(
        {kind: count for kind, count in kinds.items() if not kind.startswith(OUTSIDE)}
    )


def total(chunks: list[dict[str, Any]], key: str) -> collections.Counter[str]:
    """The counts of all chunks."""
    counts: collections.Counter[str] = collections.Counter()
    for chunk in chunks:
        counts.update(chunk[key])
    return counts


def summary(chunks: list[dict[str, Any]]) -> str:
    """The summary of one or more runs, as Markdown."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for chunk in chunks:
        groups.setdefault((chunk["machine"], chunk["precision"]), []).append(chunk)
    kinds, inside, changed = (total(chunks, key) for key in ("kinds", "inside", "changed"))
    refused = refusals(kinds)
    errors: collections.Counter[str] = collections.Counter()
    for reason, count in refused.items():
        errors[reason.split(":")[0]] += count
    layers = sorted({name for chunk in chunks for name in chunk["followed"]} | set(inside))
    opened = [name for name in layers if name in OPENED]
    layers = [name for name in layers if name in chunks[0]["followed"]]
    operations = sorted(name for name in inside if name.startswith("ops."))
    missing = [name for name in layers if not inside[name]]
    failures = [failure for chunk in chunks for failure in chunk["failures"]]
    lines = [
        "# Random models under random growths",
        "",
        str(__doc__).split("\n\n")[1],
        "",
        "| backend | models | of which grew | growths | refused | failures | kinds of layers "
        "| largest difference | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(group, len(layers)) for _, group in sorted(groups.items())),
        "",
        "Kinds of layers: of those that the rule book follows, how many were part of a model that "
        "grew. The difference is that of the outputs, in both modes, relative to them. Some models "
        "are discarded, since Keras builds but doesn't run them, or their outputs are too large.",
        "",
        *chunk_list(groups),
        "",
        FINDINGS,
        "",
        "## Why growths were refused",
        "",
        "| refused with | growths |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in errors.most_common()),
        "",
        "| the most frequent reasons | growths |",
        "|---|---|",
        *(f"| {escape(name)} | {count} |" for name, count in refused.most_common(MOST)),
        "",
        "## What the models were made of",
        "",
        "Layers by how many models they were part of that grew, and, in brackets, in how many "
        "they changed: "
        + ", ".join(f"{name} {inside[name]} ({changed[name]})" for name in (*layers, *opened))
        + ".",
        "",
        f"Never in a model that grew: {', '.join(missing) or 'none'}.",
        "",
        "Operations, likewise: "
        + ", ".join(f"{name.removeprefix('ops.')} {inside[name]}" for name in operations)
        + ".",
        "",
        "## Failures in these runs",
        "",
        "None." if not failures else f"{len(failures)}, each reduced to a small model:",
        *(f"\n```\n{failure}\n```" for failure in failures),
    ]
    return "\n".join(lines) + "\n"


OPENED = ("Encoder", "GatedProjection", "Network", "Residual", "Subclassed", "TwoReaders")
FINDINGS = "## What they found"


def row(chunks: list[dict[str, Any]], layers: int) -> str:
    """The row of one backend."""
    kinds, inside = total(chunks, "kinds"), total(chunks, "inside")
    models = sum(chunk["examples"] for chunk in chunks)
    grown = sum(chunk["grown models"] for chunk in chunks)
    discarded = sum(count for kind, count in kinds.items() if kind.startswith("discarded"))
    seen = sum(bool(inside[name]) for name in chunks[0]["followed"])
    difference = max(chunk["difference"] for chunk in chunks)
    minutes = sum(chunk["seconds"] for chunk in chunks) / 60
    cells = [
        chunks[0]["backend"],
        f"{models:,} ({discarded} discarded)",
        f"{grown:,} ({grown / max(1, models):.0%})",
        f"{kinds['grown']:,}",
        f"{refusals(kinds).total():,}",
        f"**{kinds['failed']}**",
        f"{seen} of {layers}",
        f"{difference:.1e} in {chunks[0]['precision']}",
        f"{minutes:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def chunk_list(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Which seeds ran, where and on which state of the code."""
    lines = []
    for (place, _), chunks in sorted(groups.items()):
        lines.append(
            f"- {place}. Run as `KERAS_BACKEND={chunks[0]['backend']} python "
            "benchmarks/fuzz.py --examples N --seed S`, with the seeds"
        )
        for chunk in sorted(chunks, key=lambda chunk: chunk["seed"]):
            last = chunk["seed"] + chunk["examples"] - 1
            failed = chunk["kinds"].get("failed", 0)
            lines.append(
                f"  - {chunk['seed']} to {last} on {chunk['commit']}: {failed} failures, "
                f"{chunk['seconds'] / 60:.1f} min, from {chunk['before']} "
                f"to {chunk['after']}"
            )
    return lines


def escape(text: str) -> str:
    """Text as a cell of a table."""
    return text.replace("|", "\\|")


def keep_findings(path: Path, text: str) -> str:
    """Puts what was written by hand about the findings into the summary."""
    old = path.read_text() if path.exists() else ""
    if FINDINGS not in old:
        return text.replace(f"{FINDINGS}\n\n", "")
    kept = old[old.index(FINDINGS) :].split("\n## ", 2)[0].rstrip("\n")
    return text.replace(FINDINGS, kept)


def commit() -> str:
    """The commit of the code that runs."""
    root = Path(__file__).parents[1]
    try:
        made = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return made.stdout.strip()


if __name__ == "__main__":
    main()
