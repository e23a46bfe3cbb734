"""Every shipped workflow, run from its file."""

import folder_paths
import numpy as np
import pytest
from PIL import Image

from tests import photos
from tests.host.graphs import WORKFLOWS, Executor, api_form, shipped
from tests.host.helpers import photo_adapter

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
PEOPLE = 3


def mask_picture(left, right):
    """As the mask editor saves it: transparent where it was painted."""
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, left:right] = 0
    return Image.merge("RGBA", [Image.new("L", (96, 64))] * 3 + [Image.fromarray(alpha)])


@pytest.fixture(scope="module")
def prepared(models, face_analysis, editor):
    photo_adapter(models / "dynamicid" / "photo.bin")
    folder = folder_paths.get_input_directory()
    Image.fromarray(photos.astronaut()).save(f"{folder}/photo.png")
    Image.fromarray(photos.actor()).save(f"{folder}/driving.png")
    group = photos.group_of_six()
    third = group.shape[1] // PEOPLE
    for i in range(PEOPLE):
        Image.fromarray(group[:, i * third : (i + 1) * third]).save(f"{folder}/person_{i + 1}.png")
    mask_picture(0, 48).save(f"{folder}/mask_1.png")
    mask_picture(48, 96).save(f"{folder}/mask_2.png")


def test_all_agreed_workflows_are_there():
    assert set(NAMES) >= {
        "one_person",
        "two_people_boxes",
        "three_people_auto_layout",
        "two_people_masks",
        "mix_of_two_photos",
        "compare_and_activation_map",
        "expression_by_words",
        "expression_from_driving_picture",
        "pose_by_sliders",
        "two_people_two_expressions",
        "miniature",
    }


def edits(name):
    return any(node["type"] == "DynamicIDEditFace" for node in shipped(name)["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_runs_to_its_picture(prepared, name):
    files = {"adapter": "photo.bin"}
    if edits(name):
        files |= {"imr": "IMR_tiny.bin", "keypoint_encoder": "kpe.bin"}
    prompt = api_form(
        shipped(name),
        EmptyLatentImage={"width": 192, "height": 128},
        KSampler={"steps": 2, "sampler_name": "euler"},
        DynamicIDLoader=files,
        DynamicIDFaceAnalysisLoader={"pack": "vectron"},
    )
    (picture,) = Executor().run(prompt)
    assert picture.shape == (1, 128, 192, 3)
    assert picture.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "miniature"])
def test_a_shipped_workflow_names_the_widely_used_files(name):
    """Users with the usual files need not choose anything."""
    prompt = api_form(shipped(name))
    loaders = {node["class_type"]: node["inputs"] for node in prompt.values()}
    parts = [loaders["DynamicIDLoader"][part] for part in ("adapter", "imr", "keypoint_encoder")]
    assert parts == ["SAA.bin", *(("IMR.bin", "key_point_encoder.bin") if edits(name) else ("none", "none"))]
    assert loaders["DynamicIDFaceAnalysisLoader"]["pack"] == "buffalo_l"
    assert loaders["TestCheckpointLoaderSimple"]["ckpt_name"] == "v1-5-pruned-emaonly-fp16.safetensors"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "miniature"])
def test_comfyui_can_offer_the_download_of_missing_files(name):
    """It offers what a node chose, from its own list of sites, as safetensors only."""
    folders = {"CheckpointLoaderSimple": "checkpoints", "CLIPVisionLoader": "clip_vision"}
    loaders = [node for node in shipped(name)["nodes"] if node["type"] in folders]
    assert {node["type"] for node in loaders} == set(folders)
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model["directory"] == folders[node["type"]]
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(".safetensors")
