"""What a person can mend."""


class InputError(ValueError):
    """A mistake in what was given. The message says what is wrong, where it was looked, and what to do."""

    def __init__(self, message: str) -> None:
        # What it repeats may hold half of an emoji, which no terminal takes: ComfyUI would end in printing it.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def not_importable(what: str, package: str, error: ImportError) -> InputError:
    """That a package is missing, or is there and does not load. what: the sentence's beginning ("Face analysis")."""
    name = error.name or package
    if isinstance(error, ModuleNotFoundError):
        return InputError(
            f"{what} needs the Python package {name}, which is not installed. Run: "
            'python -m pip install "insightface>=2" (with the Python that runs ComfyUI), then restart ComfyUI.'
        )
    return InputError(
        f"{what} needs the Python package {name}, which is installed but does not load: {error}. On Windows, install "
        "Microsoft's Visual C++ Redistributable; where a library such as libGL.so.1 is missing, install it, or "
        "opencv-python-headless in place of opencv-python. Then restart ComfyUI."
    )
