"""Shipped workflows and whole graphs, run by ComfyUI's executor."""

import math
import re
import shutil

import folder_paths
import nodes as host_nodes
import pytest
import torch
from comfy_api.latest import io
from PIL import Image
from safetensors.torch import save_file

from tests import photos
from tests.host.graphs import Executor, api_form, shipped
from tests.host.helpers import node, photo_adapter

BYPASSED = 4


@pytest.fixture(scope="module")
def prepared(models, face_analysis):
    photo_adapter(models / "dynamicid" / "photo.bin")
    Image.fromarray(photos.astronaut()).save(f"{folder_paths.get_input_directory()}/photo.png")


def one_person(change=lambda workflow: None, **inputs):
    workflow = shipped("one_person")
    change(workflow)
    small = {"EmptyLatentImage": {"width": 128, "height": 128}, "KSampler": {"steps": 2, "sampler_name": "euler"}}
    files = {"DynamicIDLoader": {"adapter": "photo.bin"}, "DynamicIDFaceAnalysisLoader": {"pack": "vectron"}}
    return api_form(workflow, **{**small, **files, **inputs})


def bypass(node_type):
    def change(workflow):
        for one in workflow["nodes"]:
            if one["type"] == node_type:
                one["mode"] = BYPASSED

    return change


def test_the_shipped_workflow_makes_a_picture(prepared):
    (picture,) = Executor().run(one_person())
    assert picture.shape == (1, 128, 128, 3)
    assert picture.isfinite().all()


def test_two_runs_of_one_graph_give_the_same_picture(prepared):
    executor = Executor()
    first = executor.run(one_person())
    again = executor.run(one_person(KSampler={"steps": 2, "sampler_name": "euler", "seed": 2}))
    back = executor.run(one_person())
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[0], back[0])
    assert torch.equal(first[0], Executor().run(one_person())[0])


def test_bypassing_apply_gives_the_bits_of_the_bare_model_before_and_after_its_use(prepared):
    executor = Executor()
    bare = executor.run(one_person(bypass("DynamicIDApply")))
    with_face = executor.run(one_person())
    bypassed = executor.run(one_person(bypass("DynamicIDApply")))
    assert not torch.equal(bare[0], with_face[0])
    assert torch.equal(bare[0], bypassed[0])


def test_weight_0_gives_the_bits_of_a_bypassed_node(prepared):
    executor = Executor()
    bare = executor.run(one_person(bypass("DynamicIDApply")))
    assert torch.equal(bare[0], executor.run(one_person(DynamicIDApply={"weight": 0.0}))[0])


def test_changing_the_weight_does_not_encode_the_photo_again(prepared):
    executor = Executor()
    executor.run(one_person())
    ran = executor.server.ran
    executor.run(one_person(DynamicIDApply={"weight": 0.7}))
    prompt = one_person()
    types = {prompt[number]["class_type"] for number in ran}
    assert "DynamicIDApply" in types
    assert not types & {"DynamicIDEncodeFace", "DynamicIDLoader", "DynamicIDFaceAnalysisLoader"}


def test_a_replaced_adapter_file_of_the_same_name_is_loaded_again(prepared, models):
    executor = Executor()
    copy_adapter(models, 1.0)
    first = executor.run(one_person(DynamicIDLoader={"adapter": "replaced.bin"}))
    copy_adapter(models, 2.0)
    second = executor.run(one_person(DynamicIDLoader={"adapter": "replaced.bin"}))
    assert not torch.equal(first[0], second[0])


def copy_adapter(models, gain):
    path = models / "dynamicid" / "replaced.bin"
    weights = torch.load(models / "dynamicid" / "photo.bin", weights_only=True)
    weights["SAA_module"] = {key: tensor * gain for key, tensor in weights["SAA_module"].items()}
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"DynamicIDLoader": {"adapter": "none.bin"}}, r'no file "none\.bin".* Looked in .*dynamicid'),
        ({"DynamicIDLoader": {"adapter": "lora.safetensors"}}, "is a LoRA"),
        ({"DynamicIDLoader": {"adapter": "cut.bin"}}, "damaged or not a weight file"),
        ({"DynamicIDLoader": {"adapter": "photo.bin", "imr": "photo.bin"}}, "is an adapter .* an IMR is needed"),
        ({"DynamicIDFaceAnalysisLoader": {"pack": "nothing"}}, 'no InsightFace pack "nothing".* Looked for'),
        ({"DynamicIDEncodeFace": {"index": 3}}, "no face 3 in the photo .* 1 found"),
        ({"DynamicIDApply": {"start_percent": 0.8, "end_percent": 0.2}}, "end before they start"),
    ],
)
def test_a_mistake_ends_the_run_with_one_message(prepared, models, inputs, message):
    save_file({"lora_unet_x.lora_up.weight": torch.rand(2, 2)}, models / "dynamicid" / "lora.safetensors")
    (models / "dynamicid" / "cut.bin").write_bytes((models / "dynamicid" / "photo.bin").read_bytes()[:10000])
    files = {"DynamicIDLoader": {"adapter": "photo.bin"}, "DynamicIDFaceAnalysisLoader": {"pack": "vectron"}}
    with pytest.raises(ValueError, match=message):
        Executor().run(one_person(**{**files, **inputs}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weight", -1.0),
        ("lora_strength", -1.0),
        ("threshold", 5.0),
        ("layout_boost", -1.0),
        ("layout_end", 1.5),
        ("start_percent", -0.5),
        ("end_percent", math.nan),
        ("detection_size", 100_000),
        ("detection_threshold", math.nan),
    ],
)
def test_settings_out_of_range_that_come_by_a_link_are_refused(prepared, setting, value):
    prompt = one_person()
    kind = "PrimitiveInt" if isinstance(value, int) else "PrimitiveFloat"
    prompt["number"] = {"class_type": kind, "inputs": {"value": value}}
    of = "DynamicIDFaceAnalysisLoader" if setting.startswith("detection") else "DynamicIDApply"
    (asked,) = (node for node in prompt.values() if node["class_type"] == of)
    asked["inputs"][setting] = ["number", 0]
    with pytest.raises(ValueError, match=re.escape(f"{setting} is {value:g}; it can be from ")):
        Executor().run(prompt)


def test_a_missing_models_folder_says_where_to_put_files(models, prepared):
    moved = shutil.move(models / "dynamicid", models / "away")
    try:
        with pytest.raises(ValueError, match="Put it there"):
            Executor().run(one_person(DynamicIDLoader={"adapter": "SAA.bin"}))
    finally:
        shutil.move(moved, models / "dynamicid")


def test_every_node_input_and_output_explains_itself():
    own = [cls for name, cls in host_nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("DynamicID")]
    assert len(own) >= 6
    assert all(issubclass(cls, io.ComfyNode) for cls in own)
    for cls in own:
        schema = cls.define_schema()
        assert schema.description, schema.node_id
        assert schema.category == "DynamicID"
        for part in [*schema.inputs, *schema.outputs]:
            assert part.tooltip, f"{schema.node_id}: {part.id or part.display_name}"


def test_apply_takes_a_face_and_placements():
    schema = node("DynamicIDApply").GET_NODE_INFO_V1()
    assert schema["input"]["required"]["faces"][0] == "DYNAMICID_FACE,DYNAMICID_PLACEMENTS"
    assert schema["output"] == ["MODEL", "CONDITIONING", "CONDITIONING"]


def test_a_new_loader_chooses_a_file_that_is_called_an_adapter(editor):
    (adapter, *_) = host_nodes.NODE_CLASS_MAPPINGS["DynamicIDLoader"].define_schema().inputs
    assert adapter.options[0] == "IMR_tiny.bin"
    assert "saa" in adapter.default.lower()


@pytest.mark.parametrize(
    "name",
    [
        "DynamicIDActivationMap",
        "DynamicIDAutoLayout",
        "DynamicIDCompareFaces",
        "DynamicIDDescribeFace",
        "DynamicIDEncodeFace",
        "DynamicIDFaceKeypoints",
        "DynamicIDLoadKeypoints",
        "DynamicIDPoseKeypoints",
    ],
)
def test_nodes_that_one_looks_at_run_without_a_node_behind_them(name):
    assert host_nodes.NODE_CLASS_MAPPINGS[name].OUTPUT_NODE


def test_a_pack_whose_files_changed_is_opened_again(face_analysis):
    loader = node("DynamicIDFaceAnalysisLoader")
    pack = face_analysis.recognition_file.parent
    before = loader.fingerprint_inputs(pack="vectron", provider="CPU")
    assert loader.fingerprint_inputs(pack="vectron", provider="CPU") == before
    moved = next(pack.glob("2d106det*"))
    try:
        moved.rename(pack / "elsewhere")
        assert loader.fingerprint_inputs(pack="vectron", provider="CPU") != before
    finally:
        (pack / "elsewhere").rename(moved)
    assert loader.fingerprint_inputs(pack="unknown", provider="CPU") == []
