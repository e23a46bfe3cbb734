"""Every file format in, one out; files that are no adapters are reported."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dynamicid_core import checkpoint, face_packs
from dynamicid_core.checkpoint import ADAPTER, IMR, KEYPOINT_ENCODER, read_checkpoint, save_checkpoint
from dynamicid_core.errors import InputError
from dynamicid_core.imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes
from tests.core.weight_files import GOLDEN, RELEASED, adapter_file, keypoint_encoder


@pytest.fixture(scope="module")
def released():
    return torch.load(RELEASED, weights_only=True)


@pytest.fixture(scope="module")
def tensors(released):
    return released["proj_module"], released["SAA_module"]


def assert_same(found, tensors):
    for module, expected in zip(("face_encoder", "saa"), tensors, strict=True):
        assert found.modules[module].keys() == expected.keys()
        assert all(torch.equal(found.modules[module][key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("encoder", "saa"),
    [("proj_module", "SAA_module"), ("proj_module", "adapter_modules"), ("image_proj", "ip_adapter")],
)
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_adapters_load_under_either_naming_and_in_either_form(tmp_path, tensors, encoder, saa, form):
    path = tmp_path / "some name"
    if form == "pickle":
        torch.save({encoder: tensors[0], saa: tensors[1], "global_step": 1000}, path)
    else:
        flat = {f"{encoder}.{k}": v for k, v in tensors[0].items()} | {f"{saa}.{k}": v for k, v in tensors[1].items()}
        save_file(flat, path)
    assert_same(read_checkpoint(path, ADAPTER), tensors)


def test_legacy_pickles_without_zip_load(tmp_path, released, tensors):
    torch.save(released, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "old.bin", ADAPTER), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_own_format_is_read_back_bit_for_bit(tmp_path, tensors, dtype):
    modules = {
        name: {key: tensor.to(dtype) for key, tensor in state.items()}
        for name, state in zip(("face_encoder", "saa"), tensors, strict=True)
    }
    path = tmp_path / "a.safetensors"
    save_checkpoint(checkpoint.Checkpoint(ADAPTER, modules, checkpoint.FACEID_PLUS_V2), path)
    again = read_checkpoint(path, ADAPTER)
    assert_same(again, modules.values())
    assert {tensor.dtype for tensor in again.modules["saa"].values()} == {dtype}
    assert again.variant == checkpoint.FACEID_PLUS_V2


def test_what_was_read_stays_what_it_is_when_the_file_is_written_over(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_checkpoint(read_checkpoint(RELEASED, ADAPTER), path)
    found = read_checkpoint(path, ADAPTER)
    size = path.stat().st_size
    with path.open("r+b") as file:  # in its place, as cp and rsync --inplace do
        file.write(bytes(size))
    assert_same(found, tensors)


def test_the_own_format_tells_what_it_is(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_checkpoint(read_checkpoint(RELEASED, ADAPTER), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "dynamicid-adapter"
    assert metadata["version"] == "1"
    assert metadata["embedding_channel_order"] == "rgb"
    assert json.loads(metadata["sizes"])["token_size"] == 64
    assert list(tmp_path.iterdir()) == [path], "no unfinished file is left behind"


def test_ip_adapter_files_for_sd15_and_sdxl_are_distinguished_by_their_tensors(tmp_path):
    sd15 = read_checkpoint(adapter_file(tmp_path / "a", 768, 32), ADAPTER, fallback=checkpoint.FACEID_PLUS)
    assert (sd15.family, sd15.variant) == ("sd15", checkpoint.FACEID_PLUS)
    sdxl = read_checkpoint(adapter_file(tmp_path / "b", 2048, 140), ADAPTER)
    assert (sdxl.family, sdxl.variant) == ("sdxl", checkpoint.FACEID_PLUS_V2)


def test_a_file_under_dynamicids_own_names_is_dynamicid_wherever_it_lies():
    assert read_checkpoint(RELEASED, ADAPTER, fallback=checkpoint.FACEID_PLUS).variant == checkpoint.DYNAMICID


def test_published_files_were_trained_with_buffalo_l_and_own_ones_tell(tmp_path):
    released = read_checkpoint(RELEASED, ADAPTER)
    assert face_packs.RECOGNITION_PACKS[released.recognition] == "buffalo_l"
    path = tmp_path / "own.safetensors"
    for name in ("glintr100", ""):
        save_checkpoint(replace(released, recognition=name), path)
        assert read_checkpoint(path, ADAPTER).recognition == name


def test_a_published_file_that_somebody_converted_was_still_trained_with_buffalo_l(tmp_path):
    path = tmp_path / "converted.safetensors"
    halves = torch.load(adapter_file(tmp_path / "a", 768, 32), weights_only=True)
    flat = {f"{half}.{key}": tensor for half, tensors in halves.items() for key, tensor in tensors.items()}
    save_file(flat, path, metadata={"format": "pt"})
    assert face_packs.RECOGNITION_PACKS[read_checkpoint(path, ADAPTER).recognition] == "buffalo_l"


def test_the_user_can_say_what_an_adapter_is(tmp_path):
    path = adapter_file(tmp_path / "a", 768, 32)
    assert read_checkpoint(path, ADAPTER, variant=checkpoint.FACEID_PLUS_V2).variant.shortcut


@pytest.fixture(scope="module")
def imr():
    return torch.load(GOLDEN / "IMR_tiny.bin", weights_only=True)


def test_an_imr_is_recognised_and_read(imr):
    found = read_checkpoint(GOLDEN / "IMR_tiny.bin", IMR)
    assert found.modules[IMR].keys() == imr.keys()
    assert found.family == "token size 64"


def test_a_keypoint_encoder_is_recognised_and_read(tmp_path):
    weights = keypoint_encoder()
    torch.save(weights, tmp_path / "any name")
    found = read_checkpoint(tmp_path / "any name", KEYPOINT_ENCODER)
    assert found.modules[KEYPOINT_ENCODER].keys() == weights.keys()


@pytest.mark.parametrize(("disentangle", "entangle"), [(1, 1), (4, 4), (2, 3)])
def test_an_imr_of_any_depth_is_read(tmp_path, disentangle, entangle):
    sizes = ImrSizes(64, 128, 64, 4, 128, disentangle, entangle)
    torch.save(Imr(sizes).state_dict(), tmp_path / "imr.bin")
    assert ImrSizes.from_state_dict(read_checkpoint(tmp_path / "imr.bin", IMR).modules[IMR]) == sizes


@pytest.mark.parametrize("part", [IMR, KEYPOINT_ENCODER])
def test_the_own_format_of_imr_and_keypoint_encoder_is_read_back_and_tells_its_sizes(tmp_path, imr, part):
    weights = imr if part == IMR else keypoint_encoder()
    save_checkpoint(checkpoint.Checkpoint(part, {part: weights}), tmp_path / "a.safetensors")
    again = read_checkpoint(tmp_path / "a.safetensors", part).modules[part]
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == f"dynamicid-{part}"
        assert json.loads(file.metadata()["sizes"])["token_size" if part == IMR else "features"] == 64


@pytest.mark.parametrize("width", [4, 16])
def test_a_keypoint_encoder_of_any_width_is_read(tmp_path, width):
    sizes = KeypointEncoderSizes(64, width)
    torch.save(KeypointEncoder(sizes).state_dict(), tmp_path / "kpe.bin")
    found = read_checkpoint(tmp_path / "kpe.bin", KEYPOINT_ENCODER).modules[KEYPOINT_ENCODER]
    assert KeypointEncoderSizes.from_state_dict(found) == sizes


class Attack:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "evil.bin"
    if zipped:
        torch.save({"proj_module": Attack(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"proj_module": Attack(trace)}))
    with pytest.raises(InputError, match="could run code"):
        read_checkpoint(path, ADAPTER)
    assert not trace.exists()


@pytest.mark.parametrize("form", ["pickle", "safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_called_damaged(tmp_path, released, form, kept):
    whole, path = tmp_path / "whole", tmp_path / "cut.bin"
    if form == "pickle":
        torch.save(released, whole)
    else:
        save_file({f"proj_module.{key}": tensor for key, tensor in released["proj_module"].items()}, whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(InputError, match="damaged or not a weight file"):
        read_checkpoint(path, ADAPTER)


def holding_itself():
    tree = {}
    tree["again"] = tree
    return tree


def nested(levels, width):
    """A tree of width ** levels leaves, in a few kilobytes: each level holds the one below it several times."""
    tree = {"step": 1}
    for _ in range(levels):
        tree = {f"branch {number}": tree for number in range(width)}
    return tree


@pytest.mark.parametrize(
    "tree", [holding_itself(), nested(40, 2), nested(4, 1000)], ids=["holds itself", "is deep", "is wide"]
)
def test_a_pickle_that_nests_without_end_is_refused_at_once(tmp_path, tree):
    torch.save(tree, tmp_path / "a.bin")
    with pytest.raises(InputError, match="not a DynamicID file"):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", bytes(range(256)) * 4, b"\x80\x02rubbish"])
def test_a_file_of_something_else_is_called_damaged(tmp_path, content):
    (tmp_path / "page.bin").write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a weight file"):
        read_checkpoint(tmp_path / "page.bin", ADAPTER)


def test_a_zip_that_is_no_torch_file_is_called_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(InputError, match="damaged or not a weight file"):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint"),
        ("vision_model.embeddings.class_embedding", "a CLIP vision model"),
        ("image_proj.proj.weight", "an IP-Adapter without the FaceID Plus face encoder"),
        ("something.weight", "not a DynamicID file"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, key, message):
    save_file({key: torch.rand(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "x.safetensors", ADAPTER)


def test_an_imr_picked_as_adapter_is_sent_to_its_own_input():
    with pytest.raises(InputError, match="is an IMR; an adapter"):
        read_checkpoint(GOLDEN / "IMR_tiny.bin", ADAPTER)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_checkpoint(tmp_path / "none.bin", ADAPTER)


def test_the_released_safetensors_form_of_our_own_writing_has_the_released_names(tmp_path):
    save_checkpoint(read_checkpoint(RELEASED, ADAPTER), tmp_path / "a.safetensors")
    keys = load_file(tmp_path / "a.safetensors").keys()
    assert "proj_module.norm.weight" in keys
    assert "SAA_module.31.to_v_ip.weight" in keys


def test_tensors_that_lie_transposed_are_written_too(tmp_path):
    released = read_checkpoint(RELEASED, ADAPTER)
    lying = {
        module: {key: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for key, tensor in weights.items()}
        for module, weights in released.modules.items()
    }
    save_checkpoint(replace(released, modules=lying), tmp_path / "a.safetensors")
    again = read_checkpoint(tmp_path / "a.safetensors", ADAPTER).modules["saa"]
    assert all(torch.equal(again[key], tensor) for key, tensor in released.modules["saa"].items())


def test_an_adapter_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(torch.load(RELEASED, weights_only=True), tmp_path / "a.bin")
    assert read_checkpoint(tmp_path / "a.bin", ADAPTER).variant == checkpoint.DYNAMICID


@pytest.mark.parametrize("variant", [checkpoint.FACEID_PLUS, checkpoint.FACEID_PLUS_V2])
def test_faceid_plus_learned_from_aligned_faces_in_insightfaces_own_channels(variant):
    assert (variant.crop, variant.embedding_channel_order) == ("aligned", "bgr")
