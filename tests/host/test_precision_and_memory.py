"""Half precision, 8-bit weights, and models that are only partly on the device."""

import gc
import weakref
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.host.helpers import CASES, GOLDEN, TENSORS, apply, core, eps, faces, placements, run, tiny_unet

LATENT = TENSORS["in.latent.1id_nobox"]
SMALL_CARD = 100_000  # bytes of weights that fit


class SmallCardPatcher(comfy.model_patcher.ModelPatcher):
    """A model that ComfyUI loads as on a card with room for hardly any of its weights."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        return super().load(device_to, SMALL_CARD, force_patch_weights, full_load=False)


def on_small_card(patcher):
    small = patcher.clone()
    small.__class__ = SmallCardPatcher
    return small


def test_half_precision_weights_stay_close_to_single_precision(dynamicid):
    whole = eps(*apply(dynamicid, faces(1)[0]), LATENT)
    half = eps(*apply(dynamicid, faces(1)[0], model=tiny_unet(torch.float16)), LATENT)
    assert half.isfinite().all()
    assert (half - whole).norm() / whole.norm() < 5e-3


def test_updates_of_8_bit_weights_are_not_rounded_away(dynamicid):
    """The same as a single-precision model whose weights were rounded to 8 bits before the updates were added."""
    rounded = tiny_unet()
    state = rounded.model.diffusion_model.state_dict()
    rounded.model.diffusion_model.load_state_dict({k: v.to(torch.float8_e4m3fn).float() for k, v in state.items()})
    expected = eps(*apply(dynamicid, faces(1)[0], model=rounded), LATENT)
    seen = eps(*apply(dynamicid, faces(1)[0], model=tiny_unet(torch.float8_e4m3fn)), LATENT)
    torch.testing.assert_close(seen, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "warnings", "strength"), [(torch.float8_e4m3fn, 1, 1.0), (torch.float16, 0, 0.2)])
def test_a_warning_says_that_merges_do_not_weigh_updates_of_8_bit_weights(dynamicid, caplog, dtype, warnings, strength):
    caplog.set_level("INFO")
    model, positive, negative = apply(dynamicid, faces(1)[0], model=tiny_unet(dtype))
    assert caplog.text.count("merges keep all those of model1 and none of model2") == warnings
    (merged,) = run("ModelMergeSimple", model1=model, model2=tiny_unet(dtype), ratio=0.2)
    seen = eps(merged, positive, negative, LATENT)
    expected = eps(*apply(dynamicid, faces(1)[0], model=tiny_unet(dtype), lora_strength=strength), LATENT)
    assert (seen - expected).norm() / expected.norm() < 0.05


def test_model_save_keeps_the_updates_of_16_bit_weights_and_not_those_of_8_bits(dynamicid):
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    for dtype, are_kept in ((torch.float16, True), (torch.float8_e4m3fn, False)):
        model = tiny_unet(dtype)
        before = comfy.utils.get_attr(model.model, name).float().clone()
        run("ModelSave", model=apply(dynamicid, faces(1)[0], model=model)[0], filename_prefix=f"updated_{dtype}")
        (file,) = Path(folder_paths.get_output_directory()).glob(f"updated_{dtype}_*.safetensors")
        saved = load_file(file)[f"model.{name}"].float()
        assert ((saved - before).abs().max() > 0.01) == are_kept


def scaled_8_bit_unet(scale=0.01):
    """The golden UNet as in "scaled fp8" checkpoints, and a single-precision one with the same weights."""
    import json

    import comfy.supported_models
    from safetensors import safe_open

    with safe_open(GOLDEN / "tiny_unet_comfy_f16.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    config = {name: value for name, value in config.items() if name not in ("num_heads", "num_head_channels")}
    sd15, plain = comfy.supported_models.SD15(config), tiny_unet()
    sd15.scaled_fp8 = torch.float8_e4m3fn
    sd15.set_inference_dtype(torch.float32, torch.float32)
    model, given = sd15.get_model({}, "", device=torch.device("cpu")), {}
    weights = plain.model.diffusion_model.state_dict()
    for name, module in model.diffusion_model.named_modules():
        if getattr(module, "scale_weight", None) is not None:
            small = (weights[f"{name}.weight"] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            given |= {f"{name}.weight": small, f"{name}.scale_weight": torch.tensor(scale)}
            weights[f"{name}.weight"] = small.float() * scale
    plain.model.diffusion_model.load_state_dict(weights)
    model.diffusion_model.load_state_dict({**weights, **given}, strict=False)
    model.diffusion_model.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), plain


def test_updates_of_scaled_8_bit_weights_are_as_strong_as_asked(dynamicid):
    scaled, plain = scaled_8_bit_unet()
    expected = eps(*apply(dynamicid, faces(1)[0], model=plain), LATENT)
    without = eps(*apply(dynamicid, faces(1)[0], model=plain, lora_strength=0.0), LATENT)
    seen = eps(*apply(dynamicid, faces(1)[0], model=scaled), LATENT)
    assert (without - expected).norm() / expected.norm() > 0.2
    assert (seen - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("name", ["1id_nobox", "1id_box_s2"])
def test_a_partly_loaded_model_gives_what_a_whole_one_gives(dynamicid, name):
    case = CASES[name]
    model = on_small_card(tiny_unet())
    patched = apply(dynamicid, placements(case), model=model, layout_boost=float(case["infer_scale"]), layout_end=0.6)
    out = eps(*patched, TENSORS[f"in.latent.{name}"])
    assert model.model.model_lowvram, "the model was meant to be loaded in part"
    torch.testing.assert_close(out, TENSORS[f"out.{name}"], atol=5e-5, rtol=0)


def test_a_partly_loaded_8_bit_model_keeps_its_updates(dynamicid):
    whole = eps(*apply(dynamicid, faces(1)[0], model=tiny_unet(torch.float8_e4m3fn)), LATENT)
    model = on_small_card(tiny_unet(torch.float8_e4m3fn))
    part = eps(*apply(dynamicid, faces(1)[0], model=model), LATENT)
    assert model.model.model_lowvram, "the model was meant to be loaded in part"
    torch.testing.assert_close(part, whole, atol=5e-5, rtol=0)


def test_8_bit_weights_are_known_in_the_wrapping_of_newer_hosts(dynamicid):
    """Their quantised tensors report the dtype they compute in as their own."""
    model = tiny_unet()
    wrapped = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    comfy.utils.get_attr(model.model, wrapped)._qdata = torch.zeros(1, dtype=torch.float8_e4m3fn)
    patched = apply(dynamicid, faces(1)[0], model=model)[0]
    assert list(patched.weight_wrapper_patches) == [wrapped]
    assert wrapped not in patched.patches


class DynamicPatcher(comfy.model_patcher.ModelPatcher):
    """As newer hosts have it on most GPUs: a weight keeps its file's dtype, and its layer says in which it will run."""

    def is_dynamic(self):
        return True


@pytest.mark.parametrize(
    ("stored", "runs_in", "merged"),
    [(torch.float8_e4m3fn, torch.float16, True), (torch.float16, torch.float8_e4m3fn, False),
     (torch.float8_e4m3fn, None, False), (torch.float16, None, True)],
)  # fmt: skip
def test_with_dynamic_vram_the_dtype_in_which_a_weight_runs_decides(dynamicid, stored, runs_in, merged):
    network = tiny_unet(stored).model
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q"
    comfy.utils.get_attr(network, name).weight_comfy_model_dtype = runs_in
    model = DynamicPatcher(network, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    patched = apply(dynamicid, faces(1)[0], model=model)[0]
    assert (f"{name}.weight" in patched.patches) == merged
    assert (f"{name}.weight" in patched.weight_wrapper_patches) == (not merged)


def test_networks_can_be_copied_for_another_gpu(dynamicid):
    """As newer hosts do it for MultiGPU CFG Split, which needs it of every network beside the model."""
    make, arguments = dynamicid.projections.cached_patcher_init
    for copy in (make(*arguments), make(*arguments, disable_dynamic=True)):
        assert type(copy) is comfy.model_patcher.ModelPatcher
        assert copy.load_device == dynamicid.projections.load_device
        own, copied = dynamicid.projections.model.state_dict(), copy.model.state_dict()
        assert own.keys() == copied.keys()
        assert all(torch.equal(own[key], copied[key]) for key in own)
        assert not {tensor.data_ptr() for tensor in own.values()} & {tensor.data_ptr() for tensor in copied.values()}


def test_bytes_of_another_packs_format_are_left_to_that_pack(dynamicid):
    """GGUF's layers hold packed bytes, report the unpacked shape, and apply patches themselves."""

    class Packed(torch.nn.Parameter):
        @property
        def shape(self):
            return self.of

    model = tiny_unet()
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    layer = comfy.utils.get_attr(model.model, name.removesuffix(".weight"))
    packed = Packed(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    packed.of, layer.weight = layer.weight.shape, packed
    patched = apply(dynamicid, faces(1)[0], model=model)[0]
    assert patched.weight_wrapper_patches == {}
    assert name in patched.patches


def test_a_half_precision_adapter_is_kept_in_half_precision_and_computes_in_single(dynamicid, models):
    module = core("checkpoint")
    whole = module.read_checkpoint(GOLDEN / "SAA_tiny.bin", module.ADAPTER)
    halves = {name: {k: v.half() for k, v in state.items()} for name, state in whole.modules.items()}
    module.save_checkpoint(module.Checkpoint(module.ADAPTER, halves), models / "dynamicid" / "half.safetensors")
    half = run("DynamicIDLoader", adapter="half.safetensors")[0]
    assert {p.dtype for p in half.projections.model.parameters()} == {torch.float16}
    whole = eps(*apply(dynamicid, faces(1)[0]), LATENT)
    assert (eps(*apply(half, faces(1)[0]), LATENT) - whole).norm() / whole.norm() < 5e-3


def test_a_loaded_adapter_is_in_memory_once():
    """The host moves networks to its device and back: another reference to the file's tensors would double them."""
    module = core("checkpoint")
    checkpoint = module.read_checkpoint(GOLDEN / "SAA_tiny.bin", module.ADAPTER)
    names = ("face_encoder", "norm.weight"), ("saa", "1.to_k_ip.weight")
    read = [weakref.ref(checkpoint.modules[part][name]) for part, name in names]
    loaded = core("comfy_host.loading").load_dynamicid(checkpoint)
    del checkpoint
    gc.collect()
    assert [tensor() for tensor in read] == [None, None]
    assert len(loaded.updates) == 256


def test_no_float64_is_used(dynamicid):
    """Apple's devices have no double precision."""

    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), f"{function} gives float64"
            return out

    model = tiny_unet()
    with NoDouble():
        patched = apply(dynamicid, placements(CASES["1id_box_s2"]), model=model)
        eps(*patched, TENSORS["in.latent.1id_box_s2"])


@pytest.mark.parametrize(("dtype", "step"), [(torch.float8_e4m3fn, 2**-3), (torch.float8_e5m2, 2**-2)])
def test_a_weight_that_stays_in_8_bits_gets_updates_smaller_than_the_steps_of_its_numbers(dtype, step):
    """With --fast the host keeps it so while it is used."""
    generator = torch.Generator().manual_seed(0)
    weight, up, down = (torch.randn(shape, generator=generator) for shape in ((640, 640), (640, 4), (4, 640)))
    small = weight.to(dtype)
    wanted = up @ down
    wanted *= (strength := 0.01 * float(small.float().norm() / wanted.norm()))
    update = core("comfy_host.patching").UnmergedUpdate(up, down, strength, 1)
    updated = update(small)
    assert updated.dtype == dtype
    torch.testing.assert_close(updated.float(), small.float() + wanted, atol=2e-3, rtol=1.01 * step)
    applied = updated.float() - small.float()
    assert float((applied * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=0.1)
    assert torch.equal(update(small).float(), updated.float()), "every step of a sampling has the same weights"


def test_a_weight_that_was_cast_for_use_is_updated_without_chance():
    generator = torch.Generator().manual_seed(0)
    weight, up, down = (torch.randn(shape, generator=generator) for shape in ((8, 6), (8, 2), (2, 6)))
    update = core("comfy_host.patching").UnmergedUpdate(up, down, 0.5, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = weight.to(dtype)
        assert torch.equal(update(cast), cast + 0.5 * (up.to(dtype) @ down.to(dtype)))


@pytest.mark.parametrize("all_unpatched", [True, False])
def test_updates_leave_the_device_when_the_host_unloads_their_model(all_unpatched):
    module, model = core("comfy_host.patching"), tiny_unet()
    update = module.UnmergedUpdate(torch.ones(4, 1, device="meta"), torch.ones(1, 4, device="meta"), 1.0, 0)
    moved = []
    update.move_to = moved.append
    module._free_on_detach([update])(model, all_unpatched)
    assert moved == [model.offload_device]
