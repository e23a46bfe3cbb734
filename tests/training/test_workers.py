"""Worker processes of the commands that make data sets."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
WAITING = """
import time
from dynamicid_core.training.data.workers import in_parallel
print(list(in_parallel(time.sleep, [0, 0, 600, 600], 2)))
"""


def test_workers_end_with_a_command_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT) as command:
        until = time.monotonic() + 60
        while len(workers := psutil.Process(command.pid).children()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(2)  # they are asleep in their second task by then, or still starting: both must end
        workers += [process for process in psutil.Process(command.pid).children() if process not in workers]
        command.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert len(workers) >= 2
    assert not alive
