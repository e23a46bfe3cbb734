"""The training loop in two processes of torchrun, which alternate on the data and agree on everything else."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy.py")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun on Windows has no such signals")


def torchrun(output, steps, *slow):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return subprocess.Popen(
        [sys.executable, *launch, str(TOY), str(output), str(steps), *map(str, slow)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(running):
    said = running.communicate(timeout=120)[0]
    return running.returncode, said


def weights(folder):
    return load_file(folder / "toy.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, said = end(torchrun(folder, 6))
    assert code == 0, said
    return folder


def test_two_processes_share_the_data_and_learn_as_one_with_a_larger_batch(whole, tmp_path):
    from tests.training.toy import Toy, ToyStage

    assert {path.name for path in whole.glob("batch-*")} == {f"batch-{number}" for number in range(12)}
    network, stage = Toy(), ToyStage(tmp_path)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.01)
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(6):
        batch = torch.cat([stage.make_batch(2 * step + process, None, "cpu") for process in range(2)])
        optimiser.zero_grad()
        network(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(0.999, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, average[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("who", ["the terminal", "a scheduler"])
def test_a_stopped_run_of_two_processes_goes_on_exactly(whole, tmp_path, who):
    running = torchrun(tmp_path, 6, 1.0)
    begun = time.monotonic()
    while not (tmp_path / "batch-4").exists():  # the third step
        assert time.monotonic() < begun + 100, end(running)
        time.sleep(0.1)
    if who == "the terminal":
        os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C: launcher and processes alike
    else:
        running.terminate()
    code, said = end(running)
    assert code != 0
    states = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert states in (["step-00000003"], ["step-00000004"]), said
    code, said = end(torchrun(tmp_path, 6))
    assert code == 0, said
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(tmp_path)[name])
