"""Messages for Python packages that are missing, do not load, or conflict."""

import logging
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType

from .errors import InputError

_log = logging.getLogger(__name__)


def import_failure(what: str, package: str, error: BaseException) -> InputError:
    """The error for a package that is missing or does not load. what: the beginning of the message ("Face analysis").
    package: its name if ``error``, from its import or first use, does not contain it.
    """
    while error.__cause__ is not None:  # InsightFace wraps errors about onnxruntime
        error = error.__cause__
    name = _find_package(error) or package
    of_onnxruntime = name == "onnxruntime"
    command = _install_hint("onnxruntime" if of_onnxruntime else '"insightface>=2"')
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


def warn_about_two_onnxruntimes(lost: Mapping[str, str]) -> None:
    """Warns if onnxruntime was installed over another of its packages. lost: such a package -> the lost provider."""
    for package, provider in lost.items():
        if _is_installed(package) and _is_installed("onnxruntime"):
            message = "Both onnxruntime and %s are installed, so no node pack can use %s. %s, then restart ComfyUI."
            _log.warning(message, package, provider, _install_hint(package))


def _install_hint(package: str) -> str:
    """The beginning of a sentence."""
    command = f"python -m pip install {package}"
    if package.startswith("onnxruntime"):  # all share one folder, and removing one breaks the others
        command = f"python -m pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-directml, then: {command}"
    return f"Run: {command} (with the Python that runs ComfyUI)"


def _find_package(error: BaseException) -> str | None:
    """The package that an error is about: one that could not be imported, or that lacks an attribute."""
    if isinstance(error, AttributeError):
        return error.obj.__name__.partition(".")[0] if isinstance(error.obj, ModuleType) else None
    if not isinstance(error, ImportError) or not error.name:
        return None
    # Shared libraries that do not load are named without their package.
    return "onnxruntime" if error.name.startswith("onnxruntime") else error.name.partition(".")[0]


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
