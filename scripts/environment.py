"""The virtual environment for the commands in this folder; it is created on first use.

Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import repository
from packages import pip_install
from repository import SetupError, python_version, venv_python

REQUIREMENTS = repository.ROOT / "requirements-dev.txt"
REQUIREMENTS_NO_DEPS = repository.ROOT / "requirements-dev-no-deps.txt"
OLDEST_PYTHON = (3, 10)


def fail(message: object) -> NoReturn:
    """End the command with exit code 1 and one sentence."""
    raise SystemExit(f"error: {message}")


def inside_venv() -> bool:
    """Whether this process runs in the repository's environment."""
    return Path(sys.prefix).resolve() == repository.VENV.resolve()


def stamp_file() -> Path:
    """Written before the environment and completed after it: shows whether one is finished, aborted, or not ours."""
    return repository.VENV / "dynamicid-setup.json"


def fingerprint() -> str:
    """Changes with the requirement files and the Python version."""
    digest = hashlib.sha256()
    for file in (REQUIREMENTS, REQUIREMENTS_NO_DEPS):
        # Read as text: a checkout with CRLF line ends is the same set of requirements.
        digest.update(file.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def read_stamp() -> dict[str, str] | None:
    """None: no stamp, so not created here. An unreadable one counts as an aborted set-up."""
    try:
        stamp = json.loads(stamp_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(state: str) -> None:
    """Record the state of the environment: `building` or `ready`."""
    stamp = {"state": state, "python": python_version(), "requirements": fingerprint()}
    partial = stamp_file().with_suffix(".part")
    partial.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(partial, stamp_file())


def is_ready() -> bool:
    """Whether the environment is complete and matches the current requirement files."""
    wanted = {"state": "ready", "python": python_version(), "requirements": fingerprint()}
    return read_stamp() == wanted and venv_python().exists()


def ensure_venv() -> Path:
    """The environment's python, after installing what is missing. Takes milliseconds when nothing is."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(f"Python {python_version()} is too old: 3.10 or newer is needed.")
    if is_ready():
        return venv_python()
    with repository.setup_lock():
        if not is_ready():
            build_venv()
    return venv_python()


def build_venv() -> None:
    """Install what the requirement files list, into a new environment unless a finished one is only outdated."""
    stamp = read_stamp()
    finished = stamp is not None and stamp.get("state") == "ready" and stamp.get("python") == python_version()
    if not (finished and venv_python().exists()):
        remove_venv(stamp)
        create_venv()
    write_stamp("building")
    place = repository.VENV.name
    print(f"Installing the packages of {REQUIREMENTS.name} into {place}, with PyTorch; the first time takes minutes.")
    pip_install("-r", str(REQUIREMENTS))
    pip_install("--no-deps", "-r", str(REQUIREMENTS_NO_DEPS))
    write_stamp("ready")


def remove_venv(stamp: dict[str, str] | None) -> None:
    """Removes only what has the stamp: a `.venv` made by hand belongs to the user."""
    if not repository.VENV.exists():
        return
    if stamp is None and any(repository.VENV.iterdir()):
        raise SetupError(f"{repository.VENV} was not made by this script. Move it away, then run this again.")
    if inside_venv():
        raise SetupError(f"{repository.VENV} has to be rebuilt: run this with a Python from outside it.")
    shutil.rmtree(repository.VENV)


def create_venv() -> None:
    """An empty environment with pip, stamped before anything is in it."""
    repository.VENV.mkdir(exist_ok=True)
    write_stamp("building")
    outer = getattr(sys, "_base_executable", None) or sys.executable
    made = subprocess.run([outer, "-m", "venv", str(repository.VENV)], capture_output=True, text=True)
    if made.returncode:
        text = (made.stdout + made.stderr).strip().splitlines()
        hint = "Install your system's package for venv (python3-venv on Debian and Ubuntu)."
        raise SetupError(
            f"Python could not make a virtual environment. {hint} It said: {text[-1] if text else 'nothing'}"
        )


def command(script: Path, arguments: list[str], work: Callable[[], None], *failures: type[Exception]) -> int:
    """Runs a script's `work` in the environment, which is created first and in which the script is started again.

    `failures`, failed set-up and Ctrl-C end it with one sentence. Exit code.
    """
    foreseen: tuple[type[Exception], ...] = (SetupError, *failures)
    try:
        begun = time.monotonic()
        ensure_venv()
        if not inside_venv():
            print(f"Packages are in place ({time.monotonic() - begun:.1f} s).", flush=True)
            return run_inside_venv(script, arguments)
        work()
    except foreseen as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped.")
    return 0


def run_inside_venv(script: Path, arguments: list[str]) -> int:
    """Run a script with the environment's python and pass on its exit code. The child handles Ctrl-C."""
    child = subprocess.Popen([str(venv_python()), str(script), *arguments])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue
