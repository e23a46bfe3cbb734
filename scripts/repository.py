"""The folders of this repository that commands write to, and who may: one set-up at a time.

Standard library only, as all that runs before anything is installed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
LOGS = CACHE / "logs"


class SetupError(Exception):
    """Set-up cannot continue. The message is one or two sentences for the user."""


def venv_python() -> Path:
    """The interpreter of a virtual environment, on any system."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def site_packages() -> Path:
    """The folder of the environment's packages, for the Python version that runs this."""
    if os.name == "nt":
        return VENV / "Lib" / "site-packages"
    return VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def python_version() -> str:
    """Such as 3.11: environments of different ones cannot be shared."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@contextmanager
def setup_lock() -> Iterator[None]:
    """One set-up at a time. The system releases the lock when the process ends, however it ends."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "setup.lock", "a+b") as handle:
        if not try_lock(handle):
            print("Waiting for another set-up of this repository to finish.")
            while not try_lock(handle):
                time.sleep(0.5)
        yield


def try_lock(handle: IO[bytes]) -> bool:
    """Lock an open file for this process; False if another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
