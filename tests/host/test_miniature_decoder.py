"""Further training of the VAE's decoder, with unchanged latents."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from dynamicid_core.comfy_host import miniature
from dynamicid_core.training.config import LoopConfig
from dynamicid_core.training.miniature import framing
from dynamicid_core.training.miniature.decoder import DecoderStage, picture_errors
from dynamicid_core.training.miniature.perception import open_perception
from dynamicid_core.training.miniature.workspace import PEOPLE
from tests.host.miniature_recipe import batches

_FACE = torch.tensor([[[0.25, 0.25], [0.75, 0.75]]])


@pytest.fixture
def stage(workspace, tmp_path):
    encoders = workspace.encoders("autoencoder")
    config = LoopConfig(output=str(tmp_path), batch_size=4)
    source, vae = workspace.source(PEOPLE, 0, 0), workspace.stage_folder("autoencoder") / miniature.VAE_FILE
    return DecoderStage(encoders, source, config, open_perception(workspace.pack, encoders.device), vae)


def test_a_decoder_that_trains_reconstructs_better(stage):
    optimizer = torch.optim.Adam(stage.network.parameters(), lr=1e-3)
    (batch,) = batches(stage, 1)
    seen = []
    for _ in range(16):
        losses = stage.network(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append({name: loss.item() for name, loss in losses.items()})
    assert {name for name, loss in seen[-1].items() if loss > 0.85 * seen[0][name]} == set()


def test_latents_stay_what_they_are_while_the_decoder_learns(workspace):
    stages = ("autoencoder", "decoder")
    before, after = (load_file(workspace.stage_folder(name) / miniature.VAE_FILE) for name in stages)
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed
    assert {name.split(".")[0] for name in changed} <= {"decoder", "post_quant_conv"}
    assert len(list(workspace.out.glob("latents-*.safetensors"))) == 1


def test_the_loader_decodes_as_the_stage_did(stage, workspace, tmp_path):
    (batch,) = batches(stage, 1)
    stage.save_weights(tmp_path)
    with torch.no_grad():
        wanted = stage.network.decode(batch.latents).clamp(0, 1)
        painted = miniature.load_vae(tmp_path / miniature.VAE_FILE).decode(batch.latents)
    torch.testing.assert_close(painted.float().cpu(), wanted, atol=1e-3, rtol=1e-3)


def test_latents_of_a_batch_get_no_more_noise_than_the_unet_errs(stage):
    (batch,) = batches(stage, 1)
    (raw,) = islice(stage.raw_batches(0, 1), 1)
    exact = stage._encoders.latents(torch.stack([torch.from_numpy(one.picture.copy()) for one in raw]) / 255)
    shaken = (batch.latents - exact).std((1, 2, 3)) * 0.18215
    assert float(shaken.max()) < 0.11
    assert len(set(shaken.tolist())) == len(shaken)


def test_an_error_on_a_flat_face_counts_more_than_on_another():
    photos = torch.full((2, 16, 16, 3), 0.5)
    photos[0, 4:12, 4:12] += 0.1 * (torch.arange(8) % 2).view(8, 1, 1)
    photos[1, 4:12, 4:12] += 0.2 * (torch.arange(8) % 2).view(8, 1, 1)
    keypoints = _FACE.expand(2, -1, -1)
    flatness = framing.face_flatness(keypoints, photos.movedim(-1, 1))
    assert float(flatness[0] / flatness[1]) == pytest.approx(2)
    errors = picture_errors(photos + 0.05, photos, keypoints)
    assert float(errors[0] / errors[1]) == pytest.approx(2, rel=1e-4)


def test_a_face_of_one_colour_counts_more_but_not_for_all():
    photos = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    photos[0] = 0.5
    flatness = framing.face_flatness(_FACE.expand(4, -1, -1), photos)
    assert float(flatness[0]) == pytest.approx(2.5)
    assert torch.isfinite(flatness).all()
