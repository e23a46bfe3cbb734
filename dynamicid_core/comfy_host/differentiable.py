"""ComfyUI's models for training: frozen, but differentiable."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import comfy.sd
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_base import ModelType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..adapter import AttentionLayer, attention_layers
from ..errors import InputError
from ..images import Photo, clip_input
from .clip_models import penultimate

_log = logging.getLogger(__name__)
_TEXT_LENGTH = 77  # tokens, including begin and end; the host splits longer texts into several of these
_CACHED_TEXTS = 256  # of a quarter of a megabyte each; all 42 face prompts, and captions that soon recur


class DenoisingModel:
    """A frozen UNet of the Stable Diffusion family, with its noise schedule."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool) -> None:
        """model: a ModelPatcher of the host."""
        base = model.model
        if base.model_type != ModelType.EPS:
            raise InputError(
                f"This base model predicts {base.model_type.name}, not noise (EPS). Train on SD1.5, or a model based "
                "on it."
            )
        self._dtype = dtype
        # Convolutions run faster with channels last, most of all on CPUs.
        network: nn.Module = base.diffusion_model.to(device, dtype, memory_format=torch.channels_last)
        self.network = network.requires_grad_(False).eval()
        self.layers: list[AttentionLayer] = attention_layers(self.network)
        if not any(layer.is_cross for layer in self.layers):
            raise InputError("This base model has no cross-attention of a Stable Diffusion UNet. Train on SD1.5.")
        if getattr(self.network, "num_classes", None) is not None:
            raise InputError(
                "This base model also takes pooled text embeddings and sizes (SDXL), which training does not provide. "
                "Train on SD1.5."
            )
        self.latent_channels: int = base.latent_format.latent_channels
        if getattr(self.network, "in_channels", self.latent_channels) != self.latent_channels:
            raise InputError(
                f"This base model takes {getattr(self.network, 'in_channels', 0)} channels (inpainting); training "
                f"provides the {self.latent_channels} of a latent. Train on an SD1.5 model that is not for inpainting."
            )
        self._sampling = base.model_sampling.to(device)
        self._scale_latents: Callable[[Tensor], Tensor] = base.process_latent_in
        self._unscale_latents: Callable[[Tensor], Tensor] = base.process_latent_out
        self.timesteps = len(self._sampling.sigmas)
        self._update_hooks: list[RemovableHandle] = []
        self._add_to: Callable[[nn.Module], list[RemovableHandle]] = lambda _: []
        if gradient_checkpointing:
            _checkpoint_blocks(self.network)

    def attach_updates(self, add_to: Callable[[nn.Module], list[RemovableHandle]]) -> None:
        """Adds low-rank updates to the UNet (``LowRankUpdates.add_to``), in place of earlier ones.

        They stay, since gradient checkpointing runs the blocks again in the backward pass.
        """
        for handle in self._update_hooks:
            handle.remove()
        self._add_to, self._update_hooks = add_to, add_to(self.network)

    @contextmanager
    def without_updates(self) -> Iterator[None]:
        """Removes the updates from the UNet inside the context. Not for use with gradient checkpointing."""
        add_to = self._add_to
        self.attach_updates(lambda _: [])
        try:
            yield
        finally:
            self.attach_updates(add_to)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The UNet's input for latents (in the VAE's scale) [B, 4, h, w] at timesteps [B]."""
        sigma = self._sampling.sigma(timesteps.float())
        mixed = self._scale_latents(latents) + noise * sigma.view(-1, 1, 1, 1)
        return self._sampling.calculate_input(sigma, mixed)

    def predict_clean(self, latents: Tensor, noise: Tensor, timesteps: Tensor, predicted: Tensor) -> Tensor:
        """The clean latents [B, 4, h, w], in the VAE's scale, as they follow from the UNet's predicted noise."""
        sigma = self._sampling.sigma(timesteps.float()).view(-1, 1, 1, 1)
        return self._unscale_latents(self._scale_latents(latents) + sigma * (noise - predicted))

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """The signal-to-noise ratio at timesteps [B], of variances."""
        return self._sampling.sigma(timesteps.float()) ** -2

    def __call__(self, seen: Tensor, timesteps: Tensor, context: Tensor, attention: Mapping[Any, Any]) -> Tensor:
        """Predicted noise [B, 4, h, w] in float32. context: [B, L, D] text. attention: replacements of
        cross-attentions, by the host's key.
        """
        options = {"patches_replace": {"attn2": dict(attention)}}
        dtype = self._dtype
        predicted = self.network(
            seen.to(dtype), timesteps.float(), context=context.to(dtype), transformer_options=options
        )
        return predicted.float()

    @torch.no_grad()
    def paint(self, noise: Tensor, steps: int, cfg: float, context: Tensor, attention: Mapping[Any, Any]) -> Tensor:
        """Samples latents [B, 4, h, w], in the VAE's scale, with the host's Euler sampler from noise of that shape.

        context: [2 * B, L, D]. In it and in the rows of ``attention``, positive ones come first, then negative ones.
        """
        sigmas = comfy.samplers.calculate_sigmas(self._sampling, "normal", steps).to(noise.device)

        def denoised(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            both, sigma = torch.cat((x, x)), sigma[:1].expand(2 * len(x))
            predicted = self(
                self._sampling.calculate_input(sigma, both), self._sampling.timestep(sigma), context, attention
            )
            positive, negative = self._sampling.calculate_denoised(sigma, predicted, both).chunk(2)
            return negative + cfg * (positive - negative)

        start = self._sampling.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise), max_denoise=True)
        return self._unscale_latents(comfy.k_diffusion.sampling.sample_euler(denoised, start, sigmas, disable=True))


class FrozenEncoders:
    """VAE, text encoder and CLIP vision model, without gradients. Results are in float32."""

    def __init__(self, vae: Any, clip: Any, clip_vision: Any, device: torch.device) -> None:
        self._vae, self.clip, self._clip_vision, self.device = vae, clip, clip_vision, device
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self._no_features: Tensor | None = None
        self._warned_about_length = False

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures [B, S, S, 3], 0 to 1 -> latents [B, 4, S / 8, S / 8]."""
        return self._vae.encode(pictures).float().to(self.device)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, h, w] -> pictures [B, 8 * h, 8 * w, 3], 0 to 1."""
        return self._vae.decode(latents).float().cpu().clamp(0, 1)

    def differentiable_pictures(self, latents: Tensor) -> Tensor:
        """Like ``pictures``, but differentiable and on the device of the latents."""
        comfy.model_management.load_models_gpu([self._vae.patcher])
        decoder = self._vae.first_stage_model.requires_grad_(False)
        decoded = decoder.decode(latents.to(self._vae.device, self._vae.vae_dtype)).to(latents)
        painted: Tensor = self._vae.process_output(decoded)
        return painted.movedim(1, -1)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> text tokens [B, 77, D] and pooled text [B, D]; those that soon recur are encoded once."""
        for prompt in dict.fromkeys(prompts):
            text = self._texts.pop(prompt, None)
            self._texts[prompt] = self._encoded(prompt) if text is None else text  # last used at the end
        context, pooled = zip(*(self._texts[prompt] for prompt in prompts), strict=True)
        for prompt in list(self._texts)[:-_CACHED_TEXTS]:
            del self._texts[prompt]
        return torch.cat(context).to(self.device), torch.cat(pooled).to(self.device)

    def contexts(self, prompts: list[str]) -> Tensor:
        """Prompts -> text tokens [B, 77, D]."""
        return self.texts(prompts)[0]

    @torch.no_grad()
    def clip_features(self, pixels: Tensor) -> Tensor:
        """CLIP's penultimate layer for normalised pixels [B, 3, S, S] -> [B, patches, size]."""
        return penultimate(self._clip_vision, pixels).to(self.device)

    def no_face_features(self) -> Tensor:
        """CLIP features of all-zero pixel values, [1, patches, size]."""
        if self._no_features is None:
            self._no_features = self.clip_features(torch.zeros(1, 3, self.image_size, self.image_size))
        return self._no_features

    def clip_input(self, photos: Sequence[Photo]) -> Tensor:
        """Photos -> normalised pixels [B, 3, S, S] for ``clip_features``."""
        vision = self._clip_vision
        return clip_input(photos, self.image_size, vision.image_mean, vision.image_std)

    @property
    def clip_size(self) -> int:
        """The size of CLIP's features."""
        return int(self._clip_vision.model.vision_model.post_layernorm.weight.shape[0])

    @property
    def pooled_size(self) -> int:
        """The size of pooled text."""
        return self.texts([""])[1].shape[-1]

    @property
    def image_size(self) -> int:
        """The side of the vision model's input pictures."""
        return int(self._clip_vision.image_size)

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        if context.shape[1] > _TEXT_LENGTH and not self._warned_about_length:
            self._warned_about_length = True
            _log.warning(
                "The text encoder takes %d tokens; the rest of a longer caption is not learned. The first such "
                'caption: "%s"',
                _TEXT_LENGTH - 2,
                prompt,
            )
        return context[:, :_TEXT_LENGTH].float().cpu(), pooled.float().cpu()


def load_models(
    base_model: str | Path, clip_vision: str | Path, bf16: bool, gradient_checkpointing: bool
) -> tuple[DenoisingModel, FrozenEncoders]:
    """Loads all frozen models that training needs, on the device ComfyUI selects. bf16: for the UNet's weights."""
    device = selected_device()
    model, clip, vae = load_base_model(base_model)
    denoiser = DenoisingModel(model, device, torch.bfloat16 if bf16 else torch.float32, gradient_checkpointing)
    return denoiser, FrozenEncoders(vae, clip, load_clip_vision(clip_vision), device)


def selected_device() -> torch.device:
    """The device ComfyUI selects."""
    device: torch.device = comfy.model_management.get_torch_device()
    return device


def load_base_model(path: str | Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint file, with the host's own loader."""
    if not Path(path).is_file():
        raise InputError(f"There is no base model {path}. Give an SD1.5 checkpoint as base_model.")
    try:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path))
    except Exception as error:  # the host raises RuntimeError, safetensors its own types, pickle others
        raise InputError(f"{path} could not be read as a checkpoint: {error}") from error
    if model is None or clip is None or vae is None:
        raise InputError(f"{path} is not a complete checkpoint: it needs a UNet, a text encoder and a VAE.")
    return model, clip, vae


def load_clip_vision(path: str | Path) -> Any:
    """CLIP_VISION of a file, with the host's own loader."""
    if not Path(path).is_file():
        raise InputError(f"There is no CLIP vision model {path}. Give CLIP ViT-H/14 as clip_vision.")
    clip_vision = comfy.clip_vision.load(str(path))
    if clip_vision is None:
        raise InputError(f"{path} is not a CLIP vision model. Give CLIP ViT-H/14 as clip_vision.")
    return clip_vision


def _checkpoint_blocks(network: nn.Module) -> None:
    """Recomputes transformer blocks in the backward pass instead of keeping activations: less memory, more time."""
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock):
            block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(
    forward: Callable[..., Tensor], x: Tensor, context: Any = None, transformer_options: Any = None
) -> Any:
    # The host goes on writing into its options; the backward pass needs them as they are now.
    options = dict(transformer_options or {})
    return checkpoint(forward, x, context=context, transformer_options=options, use_reentrant=False)
