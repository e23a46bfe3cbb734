"""Every attention layer of the UNet takes part exactly once."""

from collections import Counter

import comfy.model_management
import pytest
import torch

from tests.host.helpers import TENSORS, apply, core, eps, faces, tiny_unet

CROSS_BLOCKS = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]


def test_identity_enters_all_sixteen_cross_attention_layers_once_per_unet_call(dynamicid, monkeypatch):
    blocks, identities = Counter(), Counter()
    saa = core("saa")
    attention = saa.semantic_activated_attention

    def count(text, query, identity, settings, layout=None, **options):
        identities[identity.key_sum.data_ptr()] += 1
        return attention(text, query, identity, settings, layout, **options)

    def text_attention(q, k, v, extra_options):
        blocks[extra_options["block"]] += 1
        return (
            torch.nn.functional.scaled_dot_product_attention(
                *(part.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2) for part in (q, k, v))
            )
            .transpose(1, 2)
            .flatten(2)
        )

    model = tiny_unet()
    for name, number in CROSS_BLOCKS:
        model.set_model_attn2_replace(text_attention, name, number)
    monkeypatch.setattr(saa, "semantic_activated_attention", count)
    eps(*apply(dynamicid, faces(1)[0], model=model), TENSORS["in.latent.1id_nobox"])
    assert blocks == Counter(CROSS_BLOCKS)
    assert len(identities) == 16
    assert set(identities.values()) == {1}


@pytest.mark.parametrize("block", CROSS_BLOCKS)
def test_each_cross_attention_layer_changes_the_picture(dynamicid, block):
    """A layer whose identity values are zero gives another result than one that takes part."""
    layers = core("adapter").attention_layers(tiny_unet().model.diffusion_model)
    layer = next(layer for layer in layers if layer.is_cross and layer.block[:2] == block)
    values = dynamicid.projections.model.layers[str(layer.index)]["to_v_ip"].weight
    patched = apply(dynamicid, faces(1)[0], threshold=0.0)
    latent = TENSORS["in.latent.1id_nobox"]
    whole = eps(*patched, latent)
    with torch.inference_mode():
        kept = values.clone()
        try:
            values.zero_()
            without = eps(*patched, latent)
        finally:
            values.copy_(kept)
    assert (whole - without).abs().max() > 1e-4


def test_low_rank_updates_are_in_all_128_weights_of_the_32_layers(dynamicid):
    base = {key: tensor.clone() for key, tensor in tiny_unet().model.diffusion_model.state_dict().items()}
    patched = apply(dynamicid, faces(1)[0])[0]
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    loaded = patched.model.diffusion_model.state_dict()
    tensors = dynamicid.updates
    adapter = core("adapter")
    layers = adapter.layer_map({key: tensor.shape for key, tensor in base.items()})
    updates = adapter.low_rank_updates(tensors, layers)
    assert len(layers) == 32
    assert len(updates) == 128
    for name, (up, down) in updates.items():
        torch.testing.assert_close(loaded[name], base[name] + up @ down, atol=1e-6, rtol=1e-6)
    unchanged = base.keys() - updates.keys()
    assert all(torch.equal(loaded[name], base[name]) for name in unchanged)


def test_lora_strength_scales_the_updates(dynamicid):
    base = tiny_unet().model.diffusion_model.state_dict()
    patched = apply(dynamicid, faces(1)[0], lora_strength=0.5)[0]
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    name = "middle_block.1.transformer_blocks.0.attn1.to_out.0.weight"
    tensors = dynamicid.updates
    update = tensors["30.to_out_lora.up.weight"] @ tensors["30.to_out_lora.down.weight"]
    loaded = patched.model.diffusion_model.state_dict()[name]
    torch.testing.assert_close(loaded, base[name] + 0.5 * update, atol=1e-6, rtol=1e-6)
