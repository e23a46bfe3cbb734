"""Parallel work on all cores: results in order, with a bounded number in memory."""

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

_WINDOWS_LIMIT = 61  # processes that Windows can wait for at once
_TASKS_PER_WORKER = 4  # in progress, or waiting to be written
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def in_parallel(
    work: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int
) -> Generator[_Result, None, None]:
    """The results of the tasks, in their order; with one worker, from this process.

    work: a function that other processes can import, or a ``partial`` of one. Raises InputError when a worker was
    killed.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    if os.name == "nt":
        workers = min(workers, _WINDOWS_LIMIT)
    pending: deque[Future[_Result]] = deque()
    # Not forked: onnxruntime's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) >= workers * _TASKS_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "A worker process was killed, most often because memory ran out. Run the same command again with fewer "
            "--workers; it resumes from what is complete."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    # Ctrl-C reaches workers, too. They finish their task, and the pool then ends them: one that died first would look
    # as if it had been killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed process cannot end its pool, whose workers would wait forever and keep their memory.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
