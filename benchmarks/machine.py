"""What stands beside each table: the versions that were measured, and the machine."""

from __future__ import annotations

import os
import platform
import time


def versions() -> str:
    """The versions of what is measured."""
    import keras
    import numpy

    backend = keras.backend.backend()
    module = __import__(backend)
    return f"keras {keras.__version__}, {backend} {module.__version__}, numpy {numpy.__version__}"


def machine() -> str:
    """The kind of machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def machine_state() -> str:
    """The load of the machine, and the time."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d %H:%M')}, load {load}"
