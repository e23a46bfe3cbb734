"""Exit codes of the pack's commands (python -m dynamicid_core.training and the like)."""

import sys
from collections.abc import Callable

from .errors import InputError


def run_command(work: Callable[[], object], interrupted: str) -> int:
    """Runs a command. Returns its exit code: 0 when done, 2 for an InputError, which is printed, 130 if interrupted.

    interrupted: printed in that last case.
    """
    try:
        work()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
