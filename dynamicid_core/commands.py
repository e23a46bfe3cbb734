"""How the commands of the pack end (python -m dynamicid_core.training and the like)."""

import sys
from collections.abc import Callable

from .errors import InputError


def run_command(work: Callable[[], object], interrupted: str) -> int:
    """Exit code: 0 when done, 2 for something to put right, which is said, 130 when interrupted.

    interrupted: what to say then.
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
