"""Random models and random operations, and the check that a growth preserves or refuses.

Everything is drawn from a source of numbers: from Hypothesis, which shrinks what it
finds, in the tests; from a seeded generator in `benchmarks/fuzz.py`. A draw of zero
is the simplest choice.

| file | what is in it |
| --- | --- |
| `sources.py` | where choices come from, and how what failed is made simpler |
| `draw.py` | what each step is drawn with: choices, names, and the tensors so far |
| `steps/` | the steps: layers, structure, sequences, images, operations; how often each is drawn |
| `composites.py` | layers and models that are written with Keras's own, and are opened |
| `models.py` | whole models |
| `growths.py` | operations on the layers that a model has |
| `checks.py` | the check, and what came of it |
| `precision.py` | float64, and quick initializers |
"""

from tests.support.random_models.checks import Mistake, Outcome, check
from tests.support.random_models.composites import Encoder, Residual
from tests.support.random_models.draw import OLDER
from tests.support.random_models.growths import random_operation
from tests.support.random_models.models import Builder
from tests.support.random_models.precision import double_precision, quick_initializers
from tests.support.random_models.sources import Seeded, Source, shrink

__all__ = [
    "OLDER",
    "Builder",
    "Encoder",
    "Mistake",
    "Outcome",
    "Residual",
    "Seeded",
    "Source",
    "check",
    "double_precision",
    "quick_initializers",
    "random_operation",
    "shrink",
]
