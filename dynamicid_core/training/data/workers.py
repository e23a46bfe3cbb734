"""Work on all cores: results in order, and not more of them at once than memory is good for."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from ...errors import InputError

_MOST_ON_WINDOWS = 61  # processes that it can wait for at once
_WAITING = 4  # tasks per worker that are worked on or wait to be written
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def in_parallel(
    work: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int
) -> Generator[_Result, None, None]:
    """The result of each task, in their order; with one worker, by this process.

    work: a function that other processes can import, or a ``partial`` of one. Raises InputError when a worker was ended
    from outside.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    if os.name == "nt":
        workers = min(workers, _MOST_ON_WINDOWS)
    begun: deque[Future[_Result]] = deque()
    # Not forked: onnxruntime's threads do not survive that.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        for task in tasks:
            begun.append(pool.submit(work, task))
            if len(begun) >= workers * _WAITING:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "A worker process was ended from outside, most often because memory ran out. Run the same command again "
            "with fewer --workers; it goes on from what is whole."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    # Ctrl-C reaches workers too. They end the task at hand, and the pool then ends them: one that died first would look
    # like one that was killed from outside.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A process that was killed cannot end its pool, whose workers would wait, and keep their memory, for good.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
