"""The layer map, and whether an adapter fits a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dynamicid_core import adapter
from dynamicid_core.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def layers():
    with safe_open(GOLDEN / "tiny_unet_comfy_f16.safetensors", "pt") as file:
        return adapter.layer_map({key: file.get_slice(key).get_shape() for key in file.keys()})  # noqa: SIM118


def test_layer_numbers_are_those_of_the_released_files(layers):
    expected = json.loads((GOLDEN / "tiny_unet_map.json").read_text())["block_to_SAA_attn1_index"]
    found = {f"{layer.block[0]}.{layer.block[1]}": layer.index for layer in layers if not layer.is_cross}
    assert found == expected


def test_sd15_has_16_self_and_16_cross_attention_layers_middle_block_last(layers):
    assert [layer.is_cross for layer in layers] == [False, True] * 16
    assert layers[-1].block == ("middle", 0, 0)
    assert {layer.context for layer in layers if layer.is_cross} == {64}


def sdxl_shapes():
    depths = {"input_blocks": {4: 2, 5: 2, 7: 10, 8: 10}, "output_blocks": {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}}
    shapes = {}
    places = [
        (f"{section}.{number}.1", depth) for section, blocks in depths.items() for number, depth in blocks.items()
    ]
    for place, depth in [*places, ("middle_block.1", 10)]:
        for i in range(depth):
            for kind, context in (("attn1", 640), ("attn2", 2048)):
                for weight in ("to_q", "to_k"):
                    shapes[f"{place}.transformer_blocks.{i}.{kind}.{weight}.weight"] = (640, context)
    return shapes


def test_sdxl_has_140_layers_in_the_order_down_up_middle():
    layers = adapter.layer_map(sdxl_shapes())
    assert len(layers) == 140
    by_index = {layer.index: layer.block for layer in layers}
    # host facts: processors 8..27 are input 7, 48..67 output 0, 120..139 the middle block
    assert (by_index[9], by_index[27], by_index[48], by_index[120]) == (
        ("input", 7, 0),
        ("input", 7, 9),
        ("output", 0, 0),
        ("middle", 0, 0),
    )


def test_an_sdxl_adapter_on_an_sd15_model_is_refused_in_both_directions(layers):
    sdxl = {
        layer.index: (layer.channels, layer.context) for layer in adapter.layer_map(sdxl_shapes()) if layer.is_cross
    }
    sd15_layers = [adapter.AttentionLayer(i, f"l{i}", ("input", i, 0), 320, 768) for i in range(32)]
    sd15 = {layer.index: (320, 768) for layer in sd15_layers if layer.is_cross}
    with pytest.raises(InputError, match=r"adapter was made for SDXL .* the model is SD1\.5"):
        adapter.check_fit(sdxl, sd15_layers)
    with pytest.raises(InputError, match=r"adapter was made for SD1\.5 .* the model is SDXL"):
        adapter.check_fit(sd15, adapter.layer_map(sdxl_shapes()))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(InputError, match="no cross-attention layers"):
        adapter.check_fit({1: (320, 768)}, adapter.layer_map({"double_blocks.0.img_attn.qkv.weight": (8, 8)}))


def test_a_model_of_the_same_family_with_other_layers_is_refused(layers):
    sizes = {layer.index: (layer.channels, layer.context) for layer in layers if layer.is_cross}
    with pytest.raises(InputError, match="layer 5 has sizes"):
        adapter.check_fit({**sizes, 5: (32, 64)}, layers)


def test_updates_are_up_times_down_under_the_weights_names(layers):
    saa = torch.load(GOLDEN / "SAA_tiny.bin", weights_only=True)["SAA_module"]
    updates = adapter.low_rank_updates(saa, layers)
    up, down = updates["input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight"]
    assert torch.equal(up, saa["1.to_out_lora.up.weight"])
    assert torch.equal(down, saa["1.to_out_lora.down.weight"])
