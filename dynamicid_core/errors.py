"""What a person can mend."""

from types import ModuleType


class InputError(ValueError):
    """A mistake in what was given. The message says what is wrong, where it was looked, and what to do."""

    def __init__(self, message: str) -> None:
        # What it repeats may hold half of an emoji, which no terminal takes: ComfyUI would end in printing it.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def check_between(name: str, value: float, least: float, most: float) -> None:
    """Raises InputError for a number out of its range, or none at all. Nodes need it, too: ComfyUI checks the ranges of
    what is typed, not of what comes by a link.
    """
    if not least <= value <= most:
        raise InputError(f"{name} is {value:g}; it can be from {least:g} to {most:g}.")


def how_to_install(package: str) -> str:
    """The beginning of a sentence."""
    command = f"python -m pip install {package}"
    if package.startswith("onnxruntime"):  # all of them write into one folder, and removing one breaks the others
        command = f"python -m pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-directml, then: {command}"
    return f"Run: {command} (with the Python that runs ComfyUI)"


def not_importable(what: str, package: str, error: BaseException) -> InputError:
    """That a package is missing, or is there and does not load. what: the sentence's beginning ("Face analysis").
    package: what it is called where ``error``, from importing it or from its first use, does not tell.
    """
    while error.__cause__ is not None:  # InsightFace speaks of onnxruntime in errors of its own
        error = error.__cause__
    name = _named_in(error) or package
    of_onnxruntime = name == "onnxruntime"
    command = how_to_install("onnxruntime" if of_onnxruntime else '"insightface>=2"')
    if of_onnxruntime:
        command += "; for CUDA, take onnxruntime-gpu"
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


def _named_in(error: BaseException) -> str | None:
    """The package that an error is about: one that could not be imported, or one that lacks a part."""
    if isinstance(error, AttributeError):
        return error.obj.__name__.partition(".")[0] if isinstance(error.obj, ModuleType) else None
    if not isinstance(error, ImportError) or not error.name:
        return None
    # Libraries that do not load are named without their package.
    return "onnxruntime" if error.name.startswith("onnxruntime") else error.name.partition(".")[0]
