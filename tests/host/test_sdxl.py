"""SDXL: 70 cross-attention layers of its topology, and adapters that do not fit."""

from collections import Counter

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch

from tests.host.helpers import apply, core, faces, fill, run, sample, tiny_unet

TOKEN_SIZE = 24


def tiny_sdxl():
    """SDXL's topology, 32 channels wide."""
    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "use_checkpoint": False, "legacy": False,
        "use_spatial_transformer": True, "use_linear_in_transformer": True, "num_classes": "sequential",
        "adm_in_channels": 2816, "use_temporal_attention": False, "use_temporal_resblock": False, "model_channels": 32,
        "num_head_channels": 16, "context_dim": TOKEN_SIZE, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    }  # fmt: skip
    model_config = comfy.supported_models.SDXL(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({}, "", device=torch.device("cpu"))
    fill(model.diffusion_model)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


@pytest.fixture(scope="module")
def sdxl():
    return tiny_sdxl()


@pytest.fixture(scope="module")
def adapter_for_sdxl(sdxl, models):
    """A FaceID Plus V2 file in SDXL's layout, 140 layers, for the tiny model."""
    shapes = {key: tensor.shape for key, tensor in sdxl.model.diffusion_model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    saa = {}
    for layer in core("adapter").layer_map(shapes):
        for name, size in (("to_q", layer.channels), ("to_k", layer.context), ("to_v", layer.context)):
            saa[f"{layer.index}.{name}_lora.down.weight"] = rand(2, size)
            saa[f"{layer.index}.{name}_lora.up.weight"] = 0.1 * rand(layer.channels, 2)
        if layer.is_cross:
            saa[f"{layer.index}.to_k_ip.weight"] = rand(layer.channels, layer.context)
            saa[f"{layer.index}.to_v_ip.weight"] = rand(layer.channels, layer.context)
    encoder = core("face_encoder")
    sizes = encoder.FaceEncoderSizes(TOKEN_SIZE, embedding_size=8, clip_size=16, depth=1)
    (models / "ipadapter").mkdir(exist_ok=True)
    network = fill(encoder.FaceEncoder(sizes))
    torch.save({"image_proj": network.state_dict(), "ip_adapter": saa}, models / "ipadapter" / "sdxl.bin")
    return run("DynamicIDLoader", adapter="sdxl.bin", variant="IP-Adapter FaceID Plus V2")[0]


def sdxl_prompts():
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 77, TOKEN_SIZE, generator=generator)
    return [[[part[None], {"pooled_output": torch.zeros(1, 1280)}]] for part in text]


def sdxl_face():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 4, TOKEN_SIZE, generator=generator)
    return core("face").Face(tokens[:1], tokens[1:], base_model="sdxl")


def test_identity_enters_all_70_cross_attention_layers_once_per_unet_call(sdxl, adapter_for_sdxl, monkeypatch):
    saa = core("saa")
    attention, seen = saa.semantic_activated_attention, Counter()

    def count(text, query, identity, settings, layout=None, **options):
        seen[identity.key_sum.data_ptr()] += 1
        return attention(text, query, identity, settings, layout, **options)

    monkeypatch.setattr(saa, "semantic_activated_attention", count)
    positive, negative = sdxl_prompts()
    patched = apply(adapter_for_sdxl, sdxl_face(), model=sdxl, positive=positive, negative=negative)
    assert len(patched[0].patches) == 3 * 140
    out = sample(*patched, steps=2, latent=torch.zeros(1, 4, 16, 16))
    assert out.isfinite().all()
    assert len(seen) == 70
    assert set(seen.values()) == {2}


def test_an_sdxl_model_is_untouched_by_a_patched_run(sdxl, adapter_for_sdxl):
    positive, negative = sdxl_prompts()
    before = sample(sdxl, positive, negative)
    patched = sample(*apply(adapter_for_sdxl, sdxl_face(), model=sdxl, positive=positive, negative=negative))
    assert not torch.equal(before, patched)
    assert torch.equal(sample(sdxl, positive, negative), before)


def test_an_adapter_for_another_model_is_refused_in_both_directions(sdxl, adapter_for_sdxl, dynamicid):
    with pytest.raises(ValueError, match="adapter and the model do not fit"):
        apply(adapter_for_sdxl, sdxl_face(), model=tiny_unet())
    with pytest.raises(ValueError, match="adapter and the model do not fit"):
        apply(dynamicid, faces(1)[0], model=sdxl)
