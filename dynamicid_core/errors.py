"""What a person can mend."""


class InputError(ValueError):
    """A mistake in what was given. The message says what is wrong, where it was looked, and what to do."""
