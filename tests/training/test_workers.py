"""Worker processes of the commands that make data sets."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
WAITING = """
import sys
from dynamicid_core.training.data.workers import in_parallel
from tests.training.test_workers import tell_and_wait
print(list(in_parallel(tell_and_wait, [sys.argv[1]] * 4, 2)))
"""


def tell_and_wait(folder):
    """A long task."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)], cwd=ROOT) as command:
        until = time.monotonic() + 60
        while len(pid_files := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        workers = [psutil.Process(int(file.stem)) for file in pid_files]
        command.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert len(workers) == 2
    assert not alive
