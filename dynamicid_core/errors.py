"""Errors that the user can fix."""


class InputError(ValueError):
    """Invalid input. The message says what is wrong, where it was found, and what to do."""

    def __init__(self, message: str) -> None:
        # Quoted input may contain a lone surrogate, which no terminal takes: ComfyUI would crash when printing it.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raises InputError for a number out of range, or NaN. Nodes need it, too: ComfyUI checks typed values only, not
    linked ones.
    """
    if not least <= value <= most:
        raise InputError(f"{name} is {value:g}; it can be from {least:g} to {most:g}.")
