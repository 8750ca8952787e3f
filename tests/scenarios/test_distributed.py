"""Growth under the engines that distribute training: all replicas stay equal, and train on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.helpers import BACKEND

pytestmark = pytest.mark.long  # processes of their own, or devices that are compiled for

SHAPES = [[4, 12], [12], [12, 12], [12], [12], [12], [12], [12], [12, 4], [4]]


def only(backend: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(backend != BACKEND, reason=f"it is an engine of {backend}")


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run(folder: Path, kind: str, processes: int = 1, ports: int = 0, **environment: str) -> list:
    """Runs a kind of `tests.support.distributed`, and returns what each process wrote."""
    chosen = free_ports(ports)
    environ = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"} | environment
    environ |= {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": BACKEND}
    started = []
    for rank in range(processes):
        arguments = [str(rank), *chosen] if ports else []
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.distributed", kind]
        with open(folder / f"{rank}.txt", "w") as log:
            started.append(
                subprocess.Popen(
                    [*command, folder / f"{rank}.json", *arguments],
                    stdout=log,
                    stderr=log,
                    env=environ,
                    cwd=Path(__file__).parents[2],
                )
            )
    try:
        for process in started:
            process.wait(timeout=300)
    finally:
        for process in started:
            process.kill()
    for rank, process in enumerate(started):
        assert process.returncode == 0, (folder / f"{rank}.txt").read_text()[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def check(found: dict) -> None:
    assert found["shapes"] == SHAPES
    assert found["difference"] < 1e-5
    assert np.all(np.isfinite(found["losses"]))
    assert found["losses"][-1] < found["losses"][0]
    assert found["trained"] != found["grown"]
    assert found.get("split", []) == found.get("parted", []) == []


@only("tensorflow")
def test_mirrored_strategy_with_two_devices(tmp_path):
    (found,) = run(tmp_path, "mirrored")
    check(found)
    assert found["replicas"] == 2
    assert found["copies"] == [2]


@only("tensorflow")
def test_multi_worker_mirrored_strategy_with_two_processes(tmp_path):
    found = run(tmp_path, "multi_worker", processes=2, ports=2)
    for one in found:
        check(one)
        assert one["replicas"] == 2
    for key in ("seed", "grown", "trained"):
        assert found[0][key] == found[1][key]


@only("jax")
def test_data_parallel_and_model_parallel_with_four_devices(tmp_path):
    flags = "--xla_force_host_platform_device_count=4"
    (found,) = run(tmp_path, "sharded", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert found["devices"] == 4
    check(found["data"])
    check(found["model"])
    for one, other in zip(found["data"]["weights"], found["model"]["weights"], strict=True):
        assert np.allclose(one, other, atol=1e-4)
    grown, native = found["layouts"]
    assert grown == native  # new variables, too, have the layout of their paths
    assert any("model" in layout for layout in grown)
    assert "13" in found["refused"]
    assert found["untouched"]


@only("torch")
def test_distributed_data_parallel_with_two_processes(tmp_path):
    found = run(tmp_path, "parallel", processes=2, ports=1)
    for one in found:
        check(one)
    for key in ("seed", "grown", "trained"):
        assert found[0][key] == found[1][key]
