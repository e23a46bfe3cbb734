"""The training commands, and base models that they refuse."""

from types import SimpleNamespace

import pytest
import torch

from tests.host.conftest import COMFYUI
from tests.host.helpers import core
from tests.host.training_helpers import make_samples


def test_a_base_model_that_does_not_predict_noise_is_refused():
    import comfy.model_base

    model = SimpleNamespace(model=SimpleNamespace(model_type=comfy.model_base.ModelType.FLOW))
    with pytest.raises(ValueError, match="predicts FLOW, not noise"):
        core("comfy_host.differentiable").DenoisingModel(model, torch.device("cpu"), torch.float32, False)


@pytest.fixture
def command(tiny_models, tmp_path, monkeypatch, adapter_file):
    """The command line, with tiny models in place of files."""
    monkeypatch.setattr(core("comfy_host.differentiable"), "load_models", lambda *_: tiny_models)
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))
    shards, sample = core("training.data.shards"), core("training.data.sample")
    with shards.ShardWriter(tmp_path / "data", {}) as writer:
        for person in ("0", "1", "2"):
            records = {one.key: sample.to_record(one) for one in make_samples() if one.identity == person}
            writer.add(person, records, {})

    def run_command(stage, device=("--cpu",), **settings):
        given = {
            "data": str(tmp_path / "data"), "base_model": "b", "clip_vision": "c", "output": str(tmp_path / stage),
            "steps": 2, "batch_size": 2, "sample_every": 0, "log_every": 1, **settings,
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text("\n".join(f"{name}: {value}" for name, value in given.items()))
        return core("training.__main__").main([stage, "--config", str(tmp_path / "run.yaml"), *device])

    return run_command


def test_both_commands_train_from_shards_to_weights(command, tmp_path):
    assert command("anchor", rank=4) == 0
    adapter = tmp_path / "anchor" / "adapter.safetensors"
    assert command("reconfigure", adapter=adapter, size=64, features=64, targets=2) == 0
    read = core("checkpoint").read_checkpoint
    read(adapter, "adapter")
    for part in ("imr", "keypoint_encoder"):
        read(tmp_path / "reconfigure" / f"{part}.safetensors", part)


def test_a_mistake_is_one_sentence_and_no_trace(command, tmp_path, capsys):
    assert command("anchor", rnak=4) == 2
    assert capsys.readouterr().err.startswith('There is no setting "rnak"; did you mean rank?')
    assert command("anchor", data=tmp_path) == 2
    assert "has no index.json" in capsys.readouterr().err


def test_a_folder_that_is_no_comfyui_is_reported(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert command("anchor") == 2
    assert "is not a ComfyUI folder" in capsys.readouterr().err


def test_a_computer_without_a_gpu_is_told_of_the_option_for_it(command, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert command("anchor", device=()) == 2
    assert "Add --cpu" in capsys.readouterr().err


def test_a_file_that_is_no_base_model_is_reported(tmp_path):
    module = core("comfy_host.differentiable")
    with pytest.raises(ValueError, match="There is no base model"):
        module.load_base_model(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"cut\.safetensors could not be read as a checkpoint"):
        module.load_base_model(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="There is no CLIP vision model"):
        module.load_clip_vision(tmp_path / "none.safetensors")


def test_an_sdxl_base_model_is_refused():
    from tests.host.test_sdxl import tiny_sdxl

    with pytest.raises(ValueError, match=r"also takes pooled text embeddings and sizes \(SDXL\)"):
        core("comfy_host.differentiable").DenoisingModel(tiny_sdxl(), torch.device("cpu"), torch.float32, False)
