"""What a person can mend."""


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
