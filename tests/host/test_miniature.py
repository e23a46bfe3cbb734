"""The small model that comes with the pack: loaded by its node, under the host's memory management, as shipped."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dynamicid_core.adapter import attention_layers
from dynamicid_core.comfy_host import miniature
from dynamicid_core.comfy_host.clip_models import text_transformer
from dynamicid_core.errors import InputError
from scripts.on_miniature import use_miniature
from tests.host.graphs import Executor, api_form, shipped
from tests.host.helpers import run

PHOTOS = miniature.FOLDER / "photos"
PROMPT = "a portrait of a person, wearing a red T-shirt, in front of a plain blue wall"


@pytest.fixture(scope="module")
def loaded():
    return run("DynamicIDMiniatureLoader")


@pytest.fixture
def photo(models):
    import folder_paths

    for i in (1, 2):
        shutil.copy(PHOTOS / f"person_{i}.jpg", f"{folder_paths.get_input_directory()}/person_{i}.png")
    shutil.copy(PHOTOS / "person_1.jpg", f"{folder_paths.get_input_directory()}/photo.png")
    return np.asarray(Image.open(PHOTOS / "person_1.jpg").convert("RGB"))


def test_all_weights_together_have_40_megabytes_at_most():
    assert sum(file.stat().st_size for file in miniature.FOLDER.glob("*.safetensors")) <= 40_000_000


def test_its_unet_has_the_attention_layers_of_sd15(loaded):
    layers = attention_layers(loaded[0].model.diffusion_model)
    places = [("input", n, 0) for n in (1, 2, 4, 5, 7, 8)] + [("output", n, 0) for n in range(3, 12)]
    assert [layer.block for layer in layers if layer.is_cross] == [*places, ("middle", 0, 0)]


def test_all_weights_are_finite():
    for file in miniature.FOLDER.glob("*.safetensors"):
        assert [name for name, tensor in load_file(file).items() if not torch.isfinite(tensor.float()).all()] == []


@torch.inference_mode()
def test_its_latents_have_the_spread_that_sd15_has(loaded, photo):
    small = np.asarray(Image.fromarray(photo).resize((128, 128)))
    latents = loaded[2].encode(torch.from_numpy(small.copy())[None].float() / 255)
    assert latents.shape == (1, miniature.LATENT_CHANNELS, 16, 16)
    assert 0.5 < float(latents.std() * 0.18215) < 2


@pytest.mark.parametrize("name", ["one_person", "two_people_boxes", "expression_by_words", "pose_by_sliders"])
def test_a_shipped_workflow_runs_on_it_with_nothing_but_the_loaders_replaced(name, photo, face_analysis):
    prompt = api_form(
        shipped(name),
        EmptyLatentImage={"width": 128, "height": 144},
        KSampler={"steps": 2},
        DynamicIDFaceAnalysisLoader={"pack": "vectron"},
    )
    for node in prompt.values():
        node["class_type"] = node["class_type"].replace("TestC", "C")  # the real loaders' names
    use_miniature(prompt)
    (picture,) = Executor().run(prompt)
    assert picture.shape == (1, 144, 128, 3)
    assert picture.isfinite().all()


def test_its_vae_encodes_by_tiles_too(loaded, photo):
    pixels = torch.rand(1, 144, 128, 3, generator=torch.Generator().manual_seed(1))
    whole = run("VAEEncode", vae=loaded[2], pixels=pixels)[0]["samples"]
    tiles = {"tile_size": 96, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    by_tiles = run("VAEEncodeTiled", vae=loaded[2], pixels=pixels, **tiles)[0]["samples"]
    assert by_tiles.shape == whole.shape
    assert (by_tiles - whole).abs().mean() < 0.5 * whole.std()


def copied(folder):
    shutil.copytree(miniature.FOLDER, folder, ignore=shutil.ignore_patterns("photos", "*.jpg", "*.png"))
    return folder


def test_a_missing_file_is_named(tmp_path):
    folder = copied(tmp_path / "m")
    (folder / miniature.VAE_FILE).unlink()
    with pytest.raises(
        InputError, match=r"The miniature's vae\.safetensors is missing from .*: install the pack again"
    ):
        miniature.load_miniature(folder)


def test_a_damaged_file_is_named(tmp_path):
    folder = copied(tmp_path / "m")
    whole = (folder / miniature.UNET_FILE).read_bytes()
    (folder / miniature.UNET_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"unet\.safetensors is damaged"):
        miniature.load_miniature(folder)


def test_a_file_of_another_version_is_reported_as_such(tmp_path):
    folder = copied(tmp_path / "m")
    weights = load_file(folder / miniature.IMAGE_FILE)
    weights.pop("visual_projection.weight")
    save_file(weights, folder / miniature.IMAGE_FILE)
    with pytest.raises(InputError, match=r"image_encoder\.safetensors does not fit this version of the pack"):
        miniature.load_miniature(folder)


def test_words_that_it_never_met_are_as_good_as_silence(loaded):
    table = text_transformer(loaded[1]).get_input_embeddings().weight
    known = load_file(miniature.FOLDER / miniature.TEXT_FILE)[miniature.WORDS]
    (tokens,) = loaded[1].tokenize("spaceship")["l"]
    (word,) = {int(token) for token, *_ in tokens} - {49406, 49407}
    assert word not in known.tolist()
    assert float(table[word].abs().max()) == 0
    assert float(table[known].abs().amin()) >= 0
    assert float(table[known].abs().amax(dim=1).min()) > 0
