"""Weight files with parts that are missing or do not fit the others."""

import pytest
import torch

from dynamicid_core.checkpoint import ADAPTER, IMR, KEYPOINT_ENCODER, read_checkpoint
from dynamicid_core.completeness import find_faults
from dynamicid_core.errors import InputError
from dynamicid_core.imr import Imr, ImrSizes
from tests.core.weight_files import GOLDEN, RELEASED, adapter_file, keypoint_encoder


@pytest.fixture(scope="module")
def released():
    return torch.load(RELEASED, weights_only=True)


@pytest.fixture(scope="module")
def imr():
    return torch.load(GOLDEN / "IMR_tiny.bin", weights_only=True)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("disentangleNet.0.1.to_kv", r"the IMR lacks disentangleNet\.0\.1\.to_kv\.weight"),
        ("entangleNet", r"the IMR lacks entangleNet\.0"),
        ("proj_in", r"the IMR lacks proj_in\.weight"),
    ],
)
def test_an_imr_that_lacks_tensors_is_refused_with_their_names(tmp_path, imr, remove, message):
    kept = {key: tensor for key, tensor in imr.items() if not key.startswith(remove)}
    torch.save(kept, tmp_path / "imr.bin")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "imr.bin", IMR)


def test_an_imr_with_a_gap_in_its_depth_is_refused(tmp_path, imr):
    third = {key.replace(".0", ".2", 1): tensor for key, tensor in imr.items() if key.startswith("entangleNet.0")}
    gap = imr | third
    torch.save(gap, tmp_path / "imr.bin")
    with pytest.raises(InputError, match=r"lacks entangleNet\.1\."):
        read_checkpoint(tmp_path / "imr.bin", IMR)


def test_an_imr_of_sizes_that_do_not_go_together_is_refused(tmp_path, imr):
    torch.save(imr | {"proj_out.weight": torch.rand(64, 48)}, tmp_path / "imr.bin")
    with pytest.raises(InputError, match=r"proj_out\.weight is \[64, 48\] instead of \[64, 64\]"):
        read_checkpoint(tmp_path / "imr.bin", IMR)
    odd = Imr(ImrSizes(64, 128, 64, 4, 128, 1, 1)).state_dict() | {"proj_in.weight": torch.rand(66, 64)}
    torch.save(odd, tmp_path / "odd.bin")
    with pytest.raises(InputError, match="66 channels cannot be split into 4 attention heads"):
        read_checkpoint(tmp_path / "odd.bin", IMR)


def test_half_a_keypoint_encoder_is_refused(tmp_path):
    weights = {key: tensor for key, tensor in keypoint_encoder().items() if not key.startswith("blocks.6")}
    torch.save(weights, tmp_path / "kpe.bin")
    with pytest.raises(InputError, match=r"a keypoint encoder, but not a complete one: .* lacks blocks\.6\.1"):
        read_checkpoint(tmp_path / "kpe.bin", KEYPOINT_ENCODER)


@pytest.mark.parametrize(
    ("module", "key"),
    [
        ("proj_module", "norm_out"),
        ("proj_module", "perceiver_resampler.layers.0.0.to_kv"),
        ("SAA_module", "5.to_v_ip"),
        ("SAA_module", "7.to_k_ip"),
        ("SAA_module", "30.to_out_lora.up"),
    ],
)
def test_an_adapter_that_lacks_tensors_is_refused_with_their_names(tmp_path, released, module, key):
    parts = {name: dict(state) for name, state in released.items()}
    removed = [name for name in parts[module] if key in name]
    for name in removed:
        del parts[module][name]
    torch.save(parts, tmp_path / "a.bin")
    with pytest.raises(InputError, match=removed[0].replace(".", r"\.")):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


def test_an_adapter_under_ip_adapters_names_that_lacks_tensors_is_refused_too(tmp_path):
    parts = torch.load(adapter_file(tmp_path / "a.bin", 768, 16), weights_only=True)
    del parts["image_proj"]["norm.weight"]
    torch.save(parts, tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"the face encoder lacks norm\.weight"):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


@pytest.mark.parametrize(
    ("module", "key", "shape", "message"),
    [
        ("SAA_module", "5.to_v_ip.weight", (7, 16), r"5\.to_k_ip\.weight is .* which does not fit \[7, 16\]"),
        ("SAA_module", "5.to_k_ip.weight", (7,), "layers that are not matrices"),
        ("proj_module", "proj.0.weight", (9,), "not a complete one"),
        ("proj_module", "perceiver_resampler.proj_in.weight", (0, 0), "not a complete one"),
    ],
)
def test_an_adapter_whose_parts_do_not_fit_each_other_is_refused(tmp_path, released, module, key, shape, message):
    modules = {name: dict(weights) for name, weights in released.items() if isinstance(weights, dict)}
    assert key in modules[module]
    modules[module][key] = torch.zeros(shape)
    torch.save(modules, tmp_path / "adapter.bin")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "adapter.bin", ADAPTER)


def test_both_halves_of_a_low_rank_update_have_one_rank(tmp_path, released):
    modules = {name: dict(weights) for name, weights in released.items() if isinstance(weights, dict)}
    key = next(key for key in modules["SAA_module"] if ".down." in key)
    modules["SAA_module"][key] = modules["SAA_module"][key][:1]
    torch.save(modules, tmp_path / "adapter.bin")
    with pytest.raises(InputError, match="which does not fit"):
        read_checkpoint(tmp_path / "adapter.bin", ADAPTER)


def test_an_adapter_of_halves_for_different_models_is_refused(tmp_path):
    sdxl, sd15 = (tmp_path / name for name in ("sdxl.bin", "sd15.bin"))
    adapter_file(sdxl, 2048, 70)
    adapter_file(sd15, 768, 16)
    mixed = torch.load(sd15, weights_only=True) | {"image_proj": torch.load(sdxl, weights_only=True)["image_proj"]}
    torch.save(mixed, tmp_path / "mixed.bin")
    with pytest.raises(InputError, match=r"makes tokens of size 2048, its SAA part takes tokens of size \{768\}"):
        read_checkpoint(tmp_path / "mixed.bin", ADAPTER)


@pytest.mark.parametrize("half", ["down", "up"])
def test_either_half_of_a_low_rank_update_is_missed(tmp_path, released, half):
    parts = {name: dict(weights) for name, weights in released.items()}
    del parts["SAA_module"][f"1.to_q_lora.{half}.weight"]
    torch.save(parts, tmp_path / "a.bin")
    with pytest.raises(InputError, match=rf"1\.to_q_lora\.{half}\.weight"):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


SAA = {
    "a bias": (lambda saa: saa | {"1.to_k_ip.bias": torch.rand(32)}, r"has an unknown 1\.to_k_ip\.bias"),
    "both biases": (
        lambda saa: saa | {"1.to_k_ip.bias": torch.rand(32), "1.to_v_ip.bias": torch.rand(32)},
        r"has an unknown 1\.to_k_ip\.bias; the SAA part has an unknown 1\.to_v_ip\.bias",
    ),
    "a step count": (lambda saa: saa | {"step": torch.tensor(1000.0)}, "has an unknown step"),
    "a layer too many": (
        lambda saa: saa | {"2.to_k_ip.weight": torch.rand(32, 64)},
        r"has an unknown 2\.to_k_ip\.weight",
    ),
    "integers": (
        lambda saa: saa | {"7.to_v_lora.up.weight": saa["7.to_v_lora.up.weight"].to(torch.int8)},
        r"the SAA part's 7\.to_v_lora\.up\.weight holds torch\.int8 instead of floating-point numbers",
    ),
    "seven layers without updates": (
        lambda saa: {key: tensor for key, tensor in saa.items() if "_lora." not in key or int(key.split(".")[0]) > 6},
        r"lacks 0\.to_q_lora\.down\.weight; .* and 53 more",
    ),
    "updates of a projection that has none": (
        lambda saa: saa | {"1.to_add_lora.up.weight": torch.rand(32, 4)},
        r"has an unknown 1\.to_add_lora\.up\.weight",
    ),
    "a row too few": (
        lambda saa: saa | {"9.to_q_lora.up.weight": saa["9.to_q_lora.up.weight"][1:]},
        r"the SAA part's 9\.to_q_lora\.up\.weight is \[\d+, 4\] instead of \[\d+, 4\]",
    ),
    "the text's size in self-attention": (
        lambda saa: saa | {"8.to_k_lora.down.weight": torch.rand(4, 64)},
        r"the SAA part's 8\.to_k_lora\.down\.weight is \[4, 64\] instead of \[4, \d+\]",
    ),
    "the last keys gone": (
        lambda saa: {key: tensor for key, tensor in saa.items() if key != "31.to_k_ip.weight"},
        r"lacks 31\.to_k_ip\.weight\.",
    ),
}


@pytest.mark.parametrize(("change", "message"), SAA.values(), ids=SAA)
def test_an_saa_part_that_is_not_as_published_is_refused(tmp_path, released, change, message):
    torch.save({**released, "SAA_module": change(released["SAA_module"])}, tmp_path / "a.bin")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "a.bin", ADAPTER)


@pytest.mark.parametrize("part", ["proj_module", IMR, KEYPOINT_ENCODER])
def test_integers_in_the_place_of_weights_are_refused_in_every_part(tmp_path, released, imr, part):
    parts = {"proj_module": released["proj_module"], IMR: imr, KEYPOINT_ENCODER: keypoint_encoder()}
    key = next(key for key, tensor in parts[part].items() if tensor.ndim == 2 or "conv_block.0.weight" in key)
    changed = parts[part] | {key: parts[part][key].to(torch.int8)}
    torch.save({**released, part: changed} if part == "proj_module" else changed, tmp_path / "a.bin")
    with pytest.raises(InputError, match=rf"'s {key} holds torch\.int8 instead of floating-point numbers"):
        read_checkpoint(tmp_path / "a.bin", ADAPTER if part == "proj_module" else part)


@pytest.mark.parametrize("left_out", ["_lora.", ".to_out_lora."])
def test_an_adapter_without_updates_or_without_those_of_one_projection_is_complete(tmp_path, released, left_out):
    saa = {key: tensor for key, tensor in released["SAA_module"].items() if left_out not in key}
    torch.save({**released, "SAA_module": saa}, tmp_path / "a.bin")
    assert read_checkpoint(tmp_path / "a.bin", ADAPTER).modules["saa"].keys() == saa.keys()


def test_an_adapter_in_8_bit_floats_is_complete(tmp_path, released):
    saa = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in released["SAA_module"].items()}
    torch.save({**released, "SAA_module": saa}, tmp_path / "a.bin")
    assert {tensor.dtype for tensor in read_checkpoint(tmp_path / "a.bin", ADAPTER).modules["saa"].values()} == {
        torch.float8_e4m3fn
    }


@pytest.mark.parametrize(("token_size", "layers"), [(768, 32), (2048, 140)])
def test_adapters_in_ip_adapters_layout_are_complete(tmp_path, token_size, layers):
    saa = read_checkpoint(adapter_file(tmp_path / "a", token_size, layers), ADAPTER).modules["saa"]
    assert len(saa) == 9 * layers


@pytest.mark.parametrize("convert", [lambda tensor: tensor.to("meta"), torch.Tensor.to_sparse], ids=["meta", "sparse"])
def test_tensors_without_plain_values_are_named(imr, convert):
    weights = imr | {"proj_in.weight": convert(imr["proj_in.weight"])}
    assert find_faults({"imr": weights}) == ["the IMR's proj_in.weight has no plain values"]
