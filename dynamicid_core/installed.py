"""Python packages that may be missing, or not load, or stand in each other's way: what is said of them."""

import logging
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType

from .errors import InputError

_log = logging.getLogger(__name__)


def not_importable(what: str, package: str, error: BaseException) -> InputError:
    """That a package is missing, or is there and does not load. what: the sentence's beginning ("Face analysis").
    package: what it is called where ``error``, from importing it or from its first use, does not tell.
    """
    while error.__cause__ is not None:  # InsightFace speaks of onnxruntime in errors of its own
        error = error.__cause__
    name = _named_in(error) or package
    of_onnxruntime = name == "onnxruntime"
    command = _how_to_install("onnxruntime" if of_onnxruntime else '"insightface>=2"')
    if of_onnxruntime:
        command += "; for CUDA, use onnxruntime-gpu"
    if isinstance(error, ModuleNotFoundError):
        return InputError(
            f"{what} needs the Python package {name}, which is not installed. {command}. Then restart ComfyUI."
        )
    begin = f"{what} needs the Python package {name}, which is installed but does not load: {str(error).rstrip('.')}."
    if of_onnxruntime:
        return InputError(
            f"{begin} {command}. On Windows, install Microsoft's Visual C++ Redistributable. Then restart ComfyUI."
        )
    return InputError(
        f"{begin} On Windows, install Microsoft's Visual C++ Redistributable; where a library such as libGL.so.1 is "
        "missing, install it, or opencv-python-headless in place of opencv-python. Then restart ComfyUI."
    )


def warn_of_two_onnxruntimes(lost: Mapping[str, str]) -> None:
    """Where onnxruntime was installed over another of its packages. lost: those -> the provider that is lost by it."""
    for package, provider in lost.items():
        if _is_installed(package) and _is_installed("onnxruntime"):
            message = "Both onnxruntime and %s are installed, so no node pack can use %s. %s, then restart ComfyUI."
            _log.warning(message, package, provider, _how_to_install(package))


def _how_to_install(package: str) -> str:
    """The beginning of a sentence."""
    command = f"python -m pip install {package}"
    if package.startswith("onnxruntime"):  # all of them write into one folder, and removing one breaks the others
        command = f"python -m pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-directml, then: {command}"
    return f"Run: {command} (with the Python that runs ComfyUI)"


def _named_in(error: BaseException) -> str | None:
    """The package that an error is about: one that could not be imported, or one that lacks a part."""
    if isinstance(error, AttributeError):
        return error.obj.__name__.partition(".")[0] if isinstance(error.obj, ModuleType) else None
    if not isinstance(error, ImportError) or not error.name:
        return None
    # Libraries that do not load are named without their package.
    return "onnxruntime" if error.name.startswith("onnxruntime") else error.name.partition(".")[0]


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
