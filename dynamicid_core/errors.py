"""Errors that the user can fix."""

_MAX_MESSAGE = 2000  # characters


class InputError(ValueError):
    """Invalid input. The message says what is wrong, where it was found, and what to do.

    Messages quote input, such as names in a file, which may be of any length: the middle of a long one is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE // 2]} … {message[-_MAX_MESSAGE // 2 :]}"
        # Quoted input may contain a lone surrogate, which no terminal takes: ComfyUI would crash when printing it.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raises InputError for a number out of range, or NaN. Nodes need it, too: ComfyUI checks typed values only, not
    linked ones.
    """
    if not least <= value <= most:
        raise InputError(f"{name} is {value:g}; it can be from {least:g} to {most:g}.")
