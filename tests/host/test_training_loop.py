"""The training loop with both stages: resuming, states, sheets, rates, precision."""

import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.host.helpers import core, tiny_unet
from tests.host.training_helpers import SIDE, anchor_stage, losses, randomise, reconfigure_stage, train


@pytest.mark.parametrize("kind", ["anchor", "reconfigure"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tiny_models, tmp_path, adapter_file, kind):
    def stage(output, **changes):
        if kind == "anchor":
            return anchor_stage(tiny_models, output, **changes)
        return reconfigure_stage(tiny_models, output, adapter_file, **changes)

    train(*stage(tmp_path / "whole", steps=4, accumulation=2))
    train(*stage(tmp_path / "parts", steps=2, accumulation=2))
    train(*stage(tmp_path / "parts", steps=4, accumulation=2))
    name = "adapter" if kind == "anchor" else "imr"
    whole, parts = (load_file(tmp_path / run_ / f"{name}.safetensors") for run_ in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def interrupting(monkeypatch, owner, name, call, interrupt=lambda: signal.raise_signal(signal.SIGINT)):
    """Ctrl-C in the given call of a function, once."""
    function, calls = getattr(owner, name), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == call:
            interrupt()
        return function(*arguments)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_asked_to_stop_ends_the_step_and_saves_a_state(tiny_models, tmp_path, monkeypatch, number):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=10, save_every=0)
    interrupting(monkeypatch, stage, "make_batch", 4, lambda: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(stage, settings)
    assert signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000004"]
    train(*anchor_stage(tiny_models, tmp_path, steps=5, save_every=0))
    assert len(losses(tmp_path)) == 5


def test_a_second_ctrl_c_does_not_wait_for_the_step(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(core("training.interruption"), "IMPATIENCE", 0.0)
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=10, save_every=2)

    def twice():
        signal.raise_signal(signal.SIGTERM)  # as launchers send beside it
        signal.raise_signal(signal.SIGINT)

    interrupting(monkeypatch, stage, "make_batch", 4, twice)
    with pytest.raises(KeyboardInterrupt):
        train(stage, settings)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000002"]


def test_only_the_newest_states_are_kept(tiny_models, tmp_path):
    train(*anchor_stage(tiny_models, tmp_path, steps=4, save_every=1, keep=2))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_is_reported_and_the_state_before_stays(tiny_models, tmp_path, monkeypatch):
    train(*anchor_stage(tiny_models, tmp_path, steps=2))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(core("training.loop"), "save_file", full)
    with pytest.raises(ValueError, match=r"No space left .* resumes from step-00000002"):
        train(*anchor_stage(tiny_models, tmp_path, steps=4))
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000002"]


def test_another_run_in_the_folder_is_not_overwritten(tiny_models, tmp_path):
    train(*anchor_stage(tiny_models, tmp_path, steps=2))
    with pytest.raises(ValueError, match="holds another run: seed differ"):
        train(*anchor_stage(tiny_models, tmp_path, steps=4, seed=1))


def test_sheets_show_what_the_weights_can_do(tiny_models, tmp_path, adapter_file):
    train(*anchor_stage(tiny_models, tmp_path / "a", steps=2, sample_every=1, sample_steps=2))
    train(*reconfigure_stage(tiny_models, tmp_path / "b", adapter_file, steps=1, sample_every=1, sample_steps=2))
    from PIL import Image

    sizes = [Image.open(path).size for path in sorted(tmp_path.glob("*/sheets/*.jpg"))]
    assert sizes == [(2 * SIDE, 4 * SIDE), (2 * SIDE, 4 * SIDE), (4 * SIDE, 4 * SIDE)]


def test_a_sheet_that_cannot_be_written_costs_no_step(tiny_models, tmp_path, caplog):
    (tmp_path / "sheets").write_text("in the way")
    train(*anchor_stage(tiny_models, tmp_path, steps=2, sample_every=1, sample_steps=1))
    assert "The sheet of step 1 could not be made" in caplog.text
    assert (tmp_path / "adapter.safetensors").is_file()


def test_a_part_with_a_lower_rate_learns_less(tiny_models, tmp_path):
    moved = {}
    for name, rates in (("as_all", {}), ("slower", {"adapter.face_encoder": 0.01})):
        stage, settings = anchor_stage(tiny_models, tmp_path / name, steps=2, rates=rates, ema_decay=0.0)
        randomise(stage.network)
        encoder, values = (stage.network.adapter.get_submodule(part) for part in ("face_encoder", "projections"))
        before = [[p.detach().clone() for p in part.parameters()] for part in (encoder, values)]
        train(stage, settings)
        moved[name] = [
            sum(float((now.detach() - then).abs().sum()) for now, then in zip(part.parameters(), was, strict=True))
            for part, was in zip((encoder, values), before, strict=True)
        ]
    assert moved["slower"][0] < 0.02 * moved["as_all"][0]
    assert moved["slower"][1] > 0.5 * moved["as_all"][1]


def test_a_rate_for_a_part_that_does_not_exist_is_refused(tiny_models, tmp_path):
    stage, settings = anchor_stage(tiny_models, tmp_path, rates={"adapter.face_encodr": 0.1})
    message = r"rates names adapter\.face_encodr, but no trainable parameter begins so\. Parts are adapter"
    with pytest.raises(core("errors").InputError, match=message):
        train(stage, settings)


@pytest.fixture
def _new_process():
    """Accelerate allows one precision per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_new_process")
@pytest.mark.parametrize("kind", ["anchor", "reconfigure"])
def test_half_precision_trains_and_draws_its_sheets(tiny_models, tmp_path, adapter_file, kind):
    denoiser = core("comfy_host.differentiable").DenoisingModel(
        tiny_unet(), torch.device("cpu"), torch.bfloat16, gradient_checkpointing=True
    )
    pair, changes = (denoiser, tiny_models[1]), {"precision": "bf16", "sample_every": 2, "sample_steps": 1, "steps": 2}
    if kind == "anchor":
        train(*anchor_stage(pair, tmp_path, **changes))
    else:
        train(*reconfigure_stage(pair, tmp_path, adapter_file, **changes))
    assert np.isfinite(losses(tmp_path)).all()
    assert len(list(tmp_path.glob("sheets/*.jpg"))) == 1
    name = {"anchor": "adapter", "reconfigure": "imr"}[kind]
    assert {tensor.dtype for tensor in load_file(tmp_path / f"{name}.safetensors").values()} == {torch.float32}


def test_the_average_lies_where_the_accelerator_put_the_network(tiny_models, tmp_path, monkeypatch):
    import accelerate

    loop, prepare, seen = core("training.loop"), accelerate.Accelerator.prepare, {}

    def prepare_elsewhere(accelerator, network, optimiser):
        return prepare(accelerator, network.double(), optimiser)  # done to parameters as a move to a GPU is

    def look(run, *_):
        seen.update({name: tensor.dtype for name, tensor in run.average.weights.items()})

    monkeypatch.setattr(accelerate.Accelerator, "prepare", prepare_elsewhere)
    monkeypatch.setattr(loop._Run, "steps", look)
    train(*anchor_stage(tiny_models, tmp_path, steps=1))
    assert set(seen.values()) == {torch.float64}


def test_the_average_takes_what_batch_normalisation_measured_along(tmp_path):
    average = core("training.average")
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    mean = average.WeightAverage(network, 0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        network(torch.randn(16, 4, generator=generator) + 2)
        mean.update(step)
    measured = network[1].running_mean.clone()
    with mean.in_place():
        averaged = network[1].running_mean.clone()
    assert 0.01 < float((averaged - measured).abs().max()) < 0.5
    assert torch.equal(network[1].running_mean, measured)


def test_two_trainings_in_one_process_follow_each_other(tiny_models, tmp_path, monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate.PartialState, "destroy_process_group", lambda *_: pytest.fail("parted"))
    train(*anchor_stage(tiny_models, tmp_path / "one", steps=1))
    train(*anchor_stage(tiny_models, tmp_path / "other", steps=1))
    assert (tmp_path / "other" / "adapter.safetensors").is_file()


@pytest.mark.parametrize("place", ["between two parts of a step", "between the optimiser and the average"])
def test_ctrl_c_at_any_place_of_a_step_leaves_the_run_exact(tiny_models, tmp_path, monkeypatch, place):
    train(*anchor_stage(tiny_models, tmp_path / "whole", steps=4, accumulation=2))
    stage, settings = anchor_stage(tiny_models, tmp_path / "parts", steps=4, accumulation=2)
    with monkeypatch.context() as patch:
        if place == "between two parts of a step":
            interrupting(patch, stage, "make_batch", 4)
        else:
            interrupting(patch, core("training.average").WeightAverage, "update", 3)
        with pytest.raises(KeyboardInterrupt):
            train(stage, settings)
    train(*anchor_stage(tiny_models, tmp_path / "parts", steps=4, accumulation=2))
    whole, parts = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_disk_that_safetensors_finds_full_is_reported_too(tiny_models, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    stage, settings = anchor_stage(tiny_models, tmp_path, steps=1)

    def full(_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(stage, "save_weights", full)
    with pytest.raises(ValueError, match=r"No space left .* resumes from the beginning"):
        train(stage, settings)


def test_no_clipping_does_not_stop_learning(tiny_models, tmp_path):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=1, clip_gradients=0.0)
    before = {name: parameter.clone() for name, parameter in stage.network.named_parameters()}
    train(stage, settings)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in stage.network.named_parameters())


@pytest.mark.usefixtures("_new_process")
def test_the_gate_is_taken_in_float32_in_half_precision_too(tiny_models, tmp_path, monkeypatch):
    saa, seen = core("saa"), []
    gate = saa.relevance_gate

    def look(*arguments):
        found = gate(*arguments)
        seen.append(found.dtype)
        return found

    monkeypatch.setattr(saa, "relevance_gate", look)
    train(*anchor_stage(tiny_models, tmp_path, steps=1, precision="bf16"))
    assert set(seen) == {torch.float32}


def test_the_averaged_weights_are_what_is_saved(tiny_models, tmp_path):
    for name, decay in (("last", 0.0), ("average", 0.999)):
        train(*anchor_stage(tiny_models, tmp_path / name, steps=2, ema_decay=decay))
    assert losses(tmp_path / "last") == losses(tmp_path / "average")
    last, average = (load_file(tmp_path / name / "adapter.safetensors") for name in ("last", "average"))
    assert any(not torch.equal(last[key], average[key]) for key in last)


def test_the_learning_rate_rises_over_the_first_steps_and_falls_over_the_last(tiny_models, tmp_path):
    train(*anchor_stage(tiny_models, tmp_path, steps=4, warmup_steps=2, cooldown_steps=2, learning_rate=6e-4))
    assert losses(tmp_path, "learning_rate") == pytest.approx([3e-4, 6e-4, 4e-4, 2e-4])


def test_the_reported_loss_is_the_mean_of_the_parts_of_a_step(tiny_models, tmp_path, monkeypatch):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=1, accumulation=4, learning_rate=1e-9)
    forward, seen = stage.network.forward, []

    def watched(batch):
        found = forward(batch)
        seen.append(float(found["loss"].detach()))
        return found

    monkeypatch.setattr(stage.network, "forward", watched)
    train(stage, settings)
    assert len(seen) == 4
    assert losses(tmp_path) == pytest.approx([sum(seen) / 4])
