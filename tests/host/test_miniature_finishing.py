"""The last training of the VAE's decoder, on what the finished miniature paints."""

import pytest
import torch
from safetensors.torch import load_file

from dynamicid_core.comfy_host import miniature
from dynamicid_core.training.config import LoopConfig
from dynamicid_core.training.miniature import finishing, painted
from dynamicid_core.training.miniature.bench import Bench
from dynamicid_core.training.miniature.finishing import FinishingStage, View
from dynamicid_core.training.miniature.perception import known_identities, open_perception
from dynamicid_core.training.miniature.workspace import PEOPLE
from tests.host.miniature_recipe import batches


@pytest.fixture(scope="module")
def bench(face_analysis):
    return Bench(miniature.load_miniature(), face_analysis, judge=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finishing") / "painted"


@pytest.fixture(scope="module")
def pictures(workspace, bench, folder):
    return painted.paint_people(bench, workspace.data_folder(PEOPLE), 1, folder)


def stage_on(workspace, out, pictures):
    """The stage on the shipped VAE."""
    encoders = workspace.encoders()
    encoders._vae = miniature.load_vae(miniature.FOLDER / miniature.VAE_FILE)
    return FinishingStage(
        encoders,
        workspace.source(PEOPLE, 0, 0),
        LoopConfig(output=str(out), batch_size=8),
        open_perception(workspace.pack, encoders.device),
        miniature.FOLDER / miniature.VAE_FILE,
        pictures,
        known_identities(workspace.data_folder(PEOPLE)),
    )


def test_everybody_is_painted_as_the_photo_shows_them_and_edited(pictures):
    assert len(pictures) == 8, "four people, two pictures each"
    assert pictures.latents.shape == (8, 8, 18, 16)
    assert torch.equal(pictures.identities[0::2], pictures.identities[1::2])
    assert len(pictures.identities.unique(dim=0)) == 4
    torch.testing.assert_close(pictures.identities.norm(dim=1), torch.ones(8))
    middles = pictures.keypoints.mean(1)
    assert bool(((middles > 0.25) & (middles < 0.75)).all())


def test_what_has_been_painted_is_not_painted_again(workspace, bench, folder, pictures, monkeypatch):
    monkeypatch.setattr(painted, "paint_latents", lambda *_: pytest.fail("painted again"))
    again = painted.paint_people(bench, workspace.data_folder(PEOPLE), 1, folder)
    assert torch.equal(again.latents, pictures.latents)
    assert torch.equal(again.keypoints, pictures.keypoints)


def test_training_on_painted_pictures_makes_their_people_more_alike(workspace, tmp_path, pictures):
    stage = stage_on(workspace, tmp_path, pictures)
    optimizer = torch.optim.Adam(stage.network.parameters(), lr=2e-4)
    (batch,) = batches(stage, 1)
    assert len(batch.latents) == 3
    assert len(batch.painted) == 5
    seen = []
    for _ in range(8):
        losses = stage.network(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append({name: loss.item() for name, loss in losses.items()})
    assert seen[0]["changed"] < 0.01, "at first the decoder is the one from before"
    for name in ("loss", "confused", "own"):
        assert seen[-1][name] < 0.97 * seen[0][name], name


def test_without_a_painted_face_it_learns_from_photos(workspace, tmp_path):
    nobody = painted.Painted(torch.empty(0, 8, 18, 16), torch.empty(0, 106, 2), torch.empty(0, 512))
    stage = stage_on(workspace, tmp_path, nobody)
    losses = stage.network(*batches(stage, 1))
    assert losses["loss"].isfinite()
    assert losses.keys() == {"loss", "picture", "features", "embedding", "unlike"}
    stage.draw_sheet(tmp_path / "sheet.jpg", 1)


def test_the_sheet_shows_before_and_now(workspace, tmp_path, pictures):
    from PIL import Image

    stage_on(workspace, tmp_path, pictures).draw_sheet(tmp_path / "sheet.png", 1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 128, 4 * 144)


def test_the_packed_vae_is_the_finished_one(workspace):
    packed = load_file(workspace.out / "miniature" / miniature.VAE_FILE)
    finished = load_file(workspace.stage_folder("finishing") / miniature.VAE_FILE)
    before = load_file(workspace.stage_folder("decoder") / miniature.VAE_FILE)
    assert all(torch.equal(value, finished[name].half()) for name, value in packed.items())
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, finished[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_each_face_is_jittered_independently_and_slightly():
    points = torch.rand(1, 106, 2, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1)
    moved = finishing.jitter_keypoints(points, torch.Generator().manual_seed(1))
    away = (moved - points).norm(dim=-1)
    assert float(away.max()) < 0.13
    assert len(away.mean(1).unique()) == 6


def test_a_view_that_changes_nothing_shows_the_picture():
    pictures = torch.rand(2, 6, 5, 3)
    zero, one = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    torch.testing.assert_close(View(zero, one, zero, torch.zeros(2, 3, 6, 5)).apply(pictures), pictures)
    blurred = View(one, one, zero, torch.zeros(2, 3, 6, 5)).apply(pictures)
    torch.testing.assert_close(blurred[:, 2, 2], pictures[:, 1:4, 1:4].mean((1, 2)))
