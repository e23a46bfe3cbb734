"""Everything that computes, on a device other than the CPU: the nodes, and all training of the miniature.

A computer with a GPU is not needed, see ``tests.pretend_device``.
"""

import dataclasses
import shutil
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import comfy.model_management
import pytest
import torch

from dynamicid_core.training.miniature import recipe
from tests import photos
from tests.host.graphs import tiny_clip, tiny_unet
from tests.host.helpers import apply, driving, faces, make_face, run, sample, tiny_clip_vision
from tests.pretend_device import DEVICE, PretendTensor, pretended

MEMORY = pytest.mark.parametrize("state", ["NORMAL_VRAM", "NO_VRAM"])


@contextmanager
def having_a_device(monkeypatch, state="NORMAL_VRAM"):
    """Gives ComfyUI this device, with plenty of memory. state: with NO_VRAM, it keeps all weights on the CPU."""

    def free_memory(_=None, torch_free_too=False):
        return (1e12, 1e12) if torch_free_too else 1e12

    with monkeypatch.context() as patch, pretended():
        patch.setattr(comfy.model_management, "get_torch_device", lambda: DEVICE)
        patch.setattr(comfy.model_management, "get_free_memory", free_memory)
        patch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState[state])
        yield
        comfy.model_management.unload_all_models()


def test_the_device_computes_what_the_cpu_does():
    torch.manual_seed(0)
    layer, numbers = torch.nn.Linear(4, 3), torch.randn(2, 4)
    expected = layer(numbers).square()
    expected.sum().backward()
    gradient = layer.weight.grad
    layer.zero_grad(set_to_none=True)
    with pretended() as device:
        result = layer.to(device)(numbers.to(device)).square()
        result.sum().backward()
        chosen = result[[1, 0], torch.tensor([True, False, True])]
        assert result.device == chosen.device == torch.tensor([1], device=device).device == device
        torch.testing.assert_close(result.cpu(), expected)
        torch.testing.assert_close(layer.weight.grad.cpu(), gradient)
        assert torch.tensor([1, 2], device=device).tolist() == [1, 2]
        with torch.inference_mode():
            assert ((result > 0) & (result < 0)).sum().item() == 0


@pytest.mark.parametrize(
    "mixture",
    [
        lambda there: there + torch.ones(2),
        lambda there: torch.ones(2).mul_(there),
        lambda there: torch.stack((there, torch.ones(2))),
        lambda there: torch.where(torch.tensor([True, False]), there, 0.0),
        lambda there: torch.ones(2)[there.bool()],
        lambda there: torch.rand_like(there, generator=torch.Generator()),
        lambda there: torch.nn.functional.linear(there, torch.ones(3, 2)),
    ],
)
def test_the_device_refuses_mixtures(mixture):
    with pretended() as device, pytest.raises(RuntimeError, match=r"but (one|it) is on the CPU"):
        mixture(torch.ones(2, device=device))


@MEMORY
def test_a_photo_is_encoded_as_on_the_cpu(state, photo_dynamicid, face_analysis, monkeypatch):
    def encode(dynamicid):
        photo, clip_vision = photos.image(photos.astronaut()), tiny_clip_vision()
        given = {"image": photo, "dynamicid": dynamicid, "face_analysis": face_analysis, "clip_vision": clip_vision}
        return run("DynamicIDEncodeFace", **given)[0].tokens

    expected = encode(photo_dynamicid)
    with having_a_device(monkeypatch, state):
        found = encode(run("DynamicIDLoader", adapter="photo.bin")[0])
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-3)


@MEMORY
def test_two_placed_people_one_edited_are_painted_and_looked_at_as_on_the_cpu(state, editor, monkeypatch):
    def paint(dynamicid):
        given = {"dynamicid": dynamicid, "clip": tiny_clip(), "keypoints": driving()}
        edited = run("DynamicIDEditFace", face=make_face(), target_prompt="happy", **given)[0]
        first, second = faces(2)
        soft = torch.linspace(0, 1, 32).expand(1, 8, 32)
        mixed = run("DynamicIDAverageFaces", face_1=first, face_2=second, method="attention")[0]
        left = run("DynamicIDPlaceFace", face=edited, mask=soft, width=0.5)[0]
        both = run("DynamicIDPlaceFace", face=mixed, x=0.5, width=0.5, placements=left)[0]
        patched = apply(dynamicid, both)
        latent = sample(*patched, latent=torch.zeros(1, 4, 32, 32))
        seen = {"latent": {"samples": latent}, "image": torch.zeros(1, 256, 256, 3)}
        return latent, run("DynamicIDActivationMap", model=patched[0], **seen)[0]

    expected = paint(editor)
    with having_a_device(monkeypatch, state):
        files = {"adapter": "SAA_tiny.bin", "imr": "IMR_tiny.bin", "keypoint_encoder": "kpe.bin"}
        found = paint(run("DynamicIDLoader", **files)[0])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=1e-3)


def devices_of_updates(model):
    wrappers = [one for given in model.weight_wrapper_patches.values() for one in given]
    return {factor.device.type for one in wrappers for factor in (one._up, one._down)}


def test_8_bit_models_have_their_updates_on_the_device_only_while_they_are_loaded(editor, monkeypatch):
    latent = torch.zeros(1, 4, 16, 16)
    with having_a_device(monkeypatch):
        dynamicid = run("DynamicIDLoader", adapter="SAA_tiny.bin")[0]
        model = tiny_unet(torch.float8_e4m3fn)
        one, other = (apply(dynamicid, faces(1)[0], model=model, weight=weight) for weight in (1.0, 0.5))
        expected = sample(*one, latent=latent)
        assert devices_of_updates(one[0]) == {DEVICE.type}
        sample(*other, latent=latent)
        assert devices_of_updates(one[0]) == {"cpu"}
        assert devices_of_updates(other[0]) == {DEVICE.type}
        sample(*one, latent=latent)
        clone = one[0].clone()  # has the same updates, and the host leaves it the loaded weights
        torch.testing.assert_close(sample(clone, *one[1:], latent=latent).cpu(), expected.cpu())
        assert devices_of_updates(clone) == {DEVICE.type}
        comfy.model_management.unload_all_models()
        assert devices_of_updates(clone) == devices_of_updates(other[0]) == {"cpu"}


@pytest.mark.slow_in_oldest
def test_every_training_of_the_miniature_computes(workspace, tmp_path, monkeypatch):
    done = []

    def train_a_little(make_stage, config, _):
        stage, folder = make_stage(dataclasses.replace(config, batch_size=4)), Path(config.output)
        network = stage.network.to(DEVICE)
        for turn, raw in enumerate(islice(stage.raw_batches(0, 1), 2)):  # of "together", one is of the UNet alone
            batch = stage.make_batch(raw, torch.Generator().manual_seed(turn), DEVICE)
            network(batch)["loss"].backward()
        gradients = [one.grad for one in network.parameters() if one.grad is not None]
        assert gradients
        assert all(isinstance(one, PretendTensor) and one.isfinite().all() for one in gradients)
        folder.mkdir(exist_ok=True)
        stage.save_weights(folder)
        stage.draw_sheet(folder / "sheet.jpg", 1)
        done.append(folder.name)

    shutil.copytree(workspace.data_folder(""), tmp_path / "data")
    names = [name for name in recipe.STAGES if name not in ("data", "measure")]
    with having_a_device(monkeypatch):
        monkeypatch.setattr(recipe, "_run", train_a_little)
        recipe.run_stages(dataclasses.replace(workspace, out=tmp_path), names)
    assert done == [name for name in names if name != "pack"]
