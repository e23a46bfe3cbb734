"""Helpers of host tests: the pack's nodes and modules as the host loaded them, tiny models, one-call sampling."""

import importlib
import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import nodes as host_nodes
import torch
from comfy_api.latest import io
from safetensors import safe_open
from safetensors.torch import load_file

from dynamicid_core.imr import KeypointEncoder, KeypointEncoderSizes
from tests import formula

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["unet"]
TENSORS = load_file(GOLDEN / "tiny_unet_golden.safetensors")
LATENT = TENSORS["in.latent.2id_boxes_s2"]
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)
TIMESTEP = 501
CFG = 5.0


def node(node_id):
    return host_nodes.NODE_CLASS_MAPPINGS[node_id]


def core(module):
    """A module of dynamicid_core as the host loaded it."""
    return importlib.import_module(
        f"{node('DynamicIDApply').__module__.removesuffix('.nodes.apply')}.dynamicid_core.{module}"
    )


def run(node_id, **inputs):
    """Runs a node with the defaults of its schema; returns its outputs."""
    cls = node(node_id)
    if issubclass(cls, io.ComfyNode):
        schema = cls.define_schema()
        values = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return cls.execute(**{**values, **inputs}).args
    with torch.inference_mode():
        return getattr(cls(), cls.FUNCTION)(**inputs)


def tiny_unet(dtype=torch.float32, load_device=None, **config_changes):
    """The golden UNet (SD1.5's topology, 32 channels wide) as the host builds models.

    More ``in_channels`` than 4, as inpainting models have, get weights of 0.05.
    """
    with safe_open(GOLDEN / "tiny_unet_comfy_f16.safetensors", "pt") as file:
        weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    config.update(config_changes)
    first, new = "input_blocks.0.0.weight", config["in_channels"] - 4
    weights[first] = torch.nn.functional.pad(weights[first], (0, 0, 0, 0, 0, new), value=0.05)
    for key in ("num_heads", "num_head_channels"):
        config.pop(key)
    model_config = comfy.supported_models.SD15(config)
    compute = torch.float32 if dtype != torch.float32 else None
    model_config.set_inference_dtype(dtype, compute)
    model = model_config.get_model({}, "", device=torch.device("cpu"))
    model.diffusion_model.load_state_dict({key: tensor.to(dtype) for key, tensor in weights.items()})
    model.diffusion_model.eval().requires_grad_(False)
    device = load_device or comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def prompts():
    """Positive and negative conditioning of the golden cases."""
    negative, positive = TENSORS["in.text_uncond_cond"].split(1)
    return [[positive, {}]], [[negative, {}]]


def faces(count):
    """The golden people."""
    make = core("face").Face
    return [
        make(TENSORS["tokens_cond"][i : i + 1], TENSORS["tokens_uncond"], base_model="token size 64")
        for i in range(count)
    ]


def motion_points():
    """Two sets of keypoints, [2, 106, 2] in fractions."""
    return load_file(GOLDEN / "kpe_true.safetensors")["in.landmarks_512"] / 512


def make_face(**changes):
    """A person of the golden token size with everything that editing needs."""
    tokens = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(3))
    motion = {
        "keypoints": motion_points()[0],
        "pose": torch.zeros(3),
        "face_prompt": "in a neutral expression, in front view",
    }
    given = {"tokens": tokens, "uncond_tokens": torch.zeros(1, 4, 64), "base_model": "token size 64", **motion}
    return core("face").Face(**{**given, **changes})


def driving():
    """Another expression and pose."""
    return core("keypoints").Keypoints(motion_points()[1], torch.tensor([0.0, 30.0, 0.0]))


def tiny_keypoint_encoder(features=64):
    """The keypoint encoder that goes with the golden IMR, with weights by formula."""
    network = KeypointEncoder(KeypointEncoderSizes(features))
    formula.fill(network, salt="tiny:", gains={"conv_block": 1.2})
    return network.eval()


def placements(case):
    """The people of a golden case in its boxes."""
    box, placement = core("regions").Box, core("face").Placement
    boxes = [box(x0, y0, x1, y1) for y0, x0, y1, x1 in case["bbox"]]
    return tuple(placement(face, place) for face, place in zip(faces(case["n_id"]), boxes, strict=True))


class OneCall:
    """A sampler that calls the model once, at a timestep, with the latent as the UNet should see it."""

    def __init__(self, latent, timestep=TIMESTEP):
        self.latent, self.timestep = latent, timestep

    def sample(self, guider, sigmas, extra_args, *_, **__):
        sampling = guider.inner_model.model_sampling
        sigma = sampling.sigma(torch.tensor([self.timestep], dtype=torch.float32))
        self.x, self.sigma = self.latent * (sigma**2 + 1) ** 0.5, sigma
        return guider(self.x, sigma.expand(len(self.x)), **extra_args)

    def max_denoise(self, *_):
        return True


def one_call(guider, latent):
    """The guider's noise prediction for ``OneCall``."""
    sampler = OneCall(latent)
    with torch.inference_mode():
        zeros = torch.zeros_like(latent)
        denoised = guider.sample(zeros, zeros, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True)
    scale = guider.model_patcher.model.latent_format.scale_factor
    return (sampler.x - denoised * scale) / sampler.sigma


def eps(model, positive, negative, latent, timestep=TIMESTEP):
    """The UNet's noise predictions through the host's whole sampling path, rows [negative, positive] as in the golden
    files.
    """
    model = model.clone()
    seen = {}

    def keep(args):
        seen.update(args)
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(keep, disable_cfg1_optimization=True)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    sampler = OneCall(latent, timestep)
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(latent), torch.zeros_like(latent), sampler, torch.tensor([1.0, 0.0]), disable_pbar=True
        )
    return torch.cat([(sampler.x - seen[part]) / sampler.sigma for part in ("uncond_denoised", "cond_denoised")])


def sample(model, positive, negative, latent=None, steps=2, cfg=CFG, seed=1, sampler="euler", **options):
    """A picture's latent by the host's own KSampler code."""
    latent = torch.zeros(1, 4, 16, 16) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler,
            "normal",
            positive,
            negative,
            latent,
            seed=seed,
            disable_pbar=True,
            **options,
        )


def apply(dynamicid, who, model=None, positive=None, negative=None, **settings):
    """Apply DynamicID on the golden UNet and prompts, unless others are given."""
    return run(
        "DynamicIDApply",
        model=model or tiny_unet(),
        positive=positive or prompts()[0],
        negative=negative or prompts()[1],
        dynamicid=dynamicid,
        faces=who,
        **settings,
    )


def tiny_clip_vision(hidden=40, image_size=28):
    """A CLIP vision model of the host's own class, with seeded weights: 5 tokens of the given size."""
    config = {
        "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": 2 * hidden, "hidden_act": "gelu",
        "image_size": image_size, "patch_size": 14, "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 3,
        "projection_dim": 16,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
    fill(clip_vision.model)
    return clip_vision


def fill(network, seed=0):
    """Seeded weights; the host's layers are uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = (values * scale + (parameter.ndim == 1 and name.endswith("weight"))).to(parameter.dtype)
    return network.eval().requires_grad_(False)


def photo_adapter(path, naming=("proj_module", "SAA_module")):
    """Writes an adapter for the golden UNet, for ArcFace embeddings and the tiny CLIP's features."""
    module = core("face_encoder")
    encoder = fill(module.FaceEncoder(module.FaceEncoderSizes(64, embedding_size=512, clip_size=40)))
    saa = torch.load(GOLDEN / "SAA_tiny.bin", weights_only=True)["SAA_module"]
    torch.save({naming[0]: encoder.state_dict(), naming[1]: saa}, path)
    return path


def place(*boxes, people=None, **options):
    """A chain of Place Face nodes; boxes are (x, y, width, height)."""
    placed = ()
    for face, (x, y, width, height) in zip(people or faces(len(boxes)), boxes, strict=True):
        (placed,) = run(
            "DynamicIDPlaceFace", face=face, x=x, y=y, width=width, height=height, placements=placed, **options
        )
    return placed
