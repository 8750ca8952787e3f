"""A process that is killed at any moment goes on when it is started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import BACKEND, cases

# The other backends trace or compile in every process, for each growth.
KILLS = {"schedule": 20 if BACKEND == "torch" else 6, "plateau": 10, "revert": 10, "shared": 6}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume.py"


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
@pytest.mark.parametrize("kind", cases(KILLS, most=6))
def test_runs_that_are_killed_end_as_one_that_is_not(kind):
    found = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, "--kills", str(KILLS[kind]), "--callback", kind],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert f"{KILLS[kind]} kills" in found.stdout
    assert "all ended alike" in found.stdout
