"""The training loop on a toy problem: what goes wrong in long runs, and what is left of them."""

import csv
import json
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file

from dynamicid_core.errors import InputError
from dynamicid_core.training import loop
from dynamicid_core.training.config import LoopConfig
from dynamicid_core.training.loop import train
from tests.training.toy import SIZE, Toy, ToyStage, settings


@pytest.fixture
def toy(tmp_path):
    """Trains to a number of steps, in a folder of the given name."""

    def run(name, steps, stage=ToyStage, **changes):
        (tmp_path / name).mkdir(exist_ok=True)
        train(stage(tmp_path / name), settings(tmp_path / name, steps, **changes), cpu=True)
        return tmp_path / name

    return run


def weights(folder):
    return load_file(folder / "toy.safetensors")


def states(folder):
    return sorted(path.name for path in (folder / "states").iterdir())


class NonFiniteStage(ToyStage):
    """Some batches are infinite."""

    bad = range(3, 4)

    def make_batch(self, raw, generator, device):
        batch = super().make_batch(raw, generator, device)
        return batch * torch.inf if raw in self.bad else batch


def test_a_step_with_non_finite_gradients_is_skipped(toy, caplog):
    folder = toy("run", 10, NonFiniteStage, save_every=2, log_every=1)
    assert "Step 4 was skipped: its gradients are not finite" in caplog.text
    assert caplog.text.count("was skipped") == 1
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_a_diverged_run_ends_and_keeps_its_states(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(NonFiniteStage, "bad", range(5, 1000))
    with pytest.raises(InputError, match=r"gradients of the last 20 steps, to step 25, are not finite.*lower learn"):
        toy("run", 100, NonFiniteStage, save_every=4, keep=2)
    assert states(tmp_path / "run") == ["step-00000020", "step-00000024"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_step_with_a_non_finite_part_is_skipped(toy, caplog):
    folder = toy("run", 6, NonFiniteStage, accumulation=2)
    assert "Step 2 was skipped" in caplog.text
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_batch_norm_statistics_of_a_non_finite_batch_are_discarded(toy):
    class Normalised(Toy):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(SIZE)

        def forward(self, batch):
            return super().forward(self.norm(batch))

    class Stage(NonFiniteStage):
        def __init__(self, folder):
            super().__init__(folder)
            self.network = Normalised()

    found = weights(toy("run", 6, Stage))
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_the_file_that_is_in_the_way_of_a_state_is_named(toy, monkeypatch):
    def locked(*_):
        raise PermissionError(13, "Permission denied", "elsewhere/adapter.safetensors")

    monkeypatch.setattr(Accelerator, "save_state", locked)
    with pytest.raises(
        InputError, match=r"could not be written: Permission denied: elsewhere/adapter\.safetensors\. Free"
    ):
        toy("run", 2)


def test_a_disk_that_torch_finds_full_is_reported_and_nothing_half_written_stays(toy, monkeypatch):
    folder = toy("run", 2)

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 6402176 vs 6402068")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(InputError, match=r"could not be written: .* resumes from step-00000002"):
        toy("run", 4)
    assert states(folder) == ["step-00000002"]


def test_a_stop_while_a_state_is_written_leaves_no_half_of_it(toy, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    folder = toy("run", 2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            toy("run", 4)
    assert states(folder) == ["step-00000002"]
    (folder / "states" / "step-00000003.part").mkdir()  # of a run that was killed
    toy("run", 4)
    assert states(folder) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("file", ["optimizer.bin", "model.safetensors", "average.safetensors", "progress.json"])
def test_a_damaged_state_is_reported_and_the_one_before_is_resumed(toy, caplog, file):
    folder = toy("run", 4, save_every=2)
    damaged = folder / "states" / "step-00000004" / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    toy("run", 6, save_every=2)
    assert "step-00000004 could not be read" in caplog.text
    whole = weights(toy("whole", 6, save_every=2))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(folder).items())


def test_states_later_than_the_resumed_one_are_deleted(toy):
    folder = toy("run", 4, save_every=2)
    (folder / "states" / "step-00000004" / "model.safetensors").write_bytes(b"")
    toy("run", 3, keep=1)
    assert states(folder) == ["step-00000003"]


def test_another_kind_of_run_is_reported_and_not_taken_for_damaged(toy):
    @dataclass(frozen=True, kw_only=True)
    class Other(LoopConfig):
        adapter: str = "a"

    folder = toy("run", 2)
    stage, given = ToyStage(folder), settings(folder, 4)
    with pytest.raises(InputError, match="holds another run: adapter differ"):
        train(stage, Other(**vars(given)), cpu=True)


def test_a_run_whose_states_are_all_damaged_is_not_restarted(toy):
    folder = toy("run", 2)
    (folder / "states" / "step-00000002" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"No state in .*states could be read.*delete that one to start over"):
        toy("run", 4)


@pytest.mark.parametrize("call", ["log", "start"])
def test_curves_that_cannot_be_written_end_no_training(toy, monkeypatch, caplog, call):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    owner, name = (TensorBoardTracker, "log") if call == "log" else (Accelerator, "init_trackers")
    monkeypatch.setattr(owner, name, full)
    toy("run", 20)
    assert caplog.text.count("TensorBoard's file could not be written") == 1


def test_another_number_of_processes_is_reported_since_it_would_see_other_data(toy):
    folder = toy("run", 2)
    progress = folder / "states" / "step-00000002" / "progress.json"
    about = json.loads(progress.read_text())
    about["config"]["number of processes"] = 2
    progress.write_text(json.dumps(about))
    with pytest.raises(InputError, match="holds another run: number of processes differ"):
        toy("run", 4)


def test_a_sheet_that_does_not_fit_into_memory_costs_no_step(toy, caplog):
    class Large(ToyStage):
        def draw_sheet(self, path, steps):
            raise torch.cuda.OutOfMemoryError("out of memory")

    toy("run", 2, Large, sample_every=1)
    assert "The sheet of step 1 could not be made" in caplog.text


def test_the_finer_of_two_rates_counts(toy):
    """A weight with its own rate, whatever the order."""
    start = Toy().linear.requires_grad_(False)
    moved = []
    for number, rates in enumerate(({"linear": 1e-6, "linear.bias": 1.0}, {"linear.bias": 1.0, "linear": 1e-6})):
        found = weights(toy(str(number), 1, rates=rates, ema_decay=0.0))
        moved.append([float((found[f"linear.{n}"] - getattr(start, n)).abs().max()) for n in ("weight", "bias")])
    assert moved[0] == moved[1]
    assert moved[0][0] < 1e-5 < moved[0][1]
