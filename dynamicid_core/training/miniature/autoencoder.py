"""The miniature's VAE: pictures to latents and back. What it preserves of a face limits everything after it."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...comfy_host.miniature import LATENT_CHANNELS, LATENT_SCALE, VAE_FILE, vae_network
from ...images import to_photos
from ..config import LoopConfig
from ..data.sample import Sample
from ..inputs import pictures
from ..losses import loss_dict
from ..stages import SHEET_ROWS, SampleSource, SampleStage, save_sheet
from .framing import close_up, in_close_up
from .weights import initialise

LATENT_STD = 1 / LATENT_SCALE
"""Standard deviation of the VAE's latents."""
_CROP = 64  # pixels; convolutions learn from crops as well as from whole pictures, and crops are quicker
_FACES = 0.7  # share of the crops around the face
_EDGES, _KL = 1.0, 3e-4  # weights of the losses
_FIRST_LOG_VARIANCE = -5.0
_MEASURED_PICTURES = 512  # by which latents are scaled


class Autoencoding(nn.Module):
    """The losses of a batch of pictures."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        network: Any = initialise(vae_network(), seed)
        self.vae = network
        with torch.no_grad():  # little noise on the latents at first
            network.quant_conv.bias[LATENT_CHANNELS:] = _FIRST_LOG_VARIANCE

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """batch: [B, 3, S, S], -1 to 1. Losses by name: how reconstructions differ from the pictures, in colour and in
        edges, and how far latents are from a standard normal distribution.
        """
        mean, log_variance = self.moments(batch)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        back = self.decode(latents)
        colour = F.l1_loss(back, batch)
        edges = _gradient_loss(back, batch, 2) + _gradient_loss(back, batch, 3)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return loss_dict(colour + _EDGES * edges + _KL * kl, colour=colour, edges=edges, kl=kl)

    def moments(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of latents, [B, LATENT_CHANNELS, S / 8, S / 8] each."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(batch)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, S, S]."""
        return self.vae.decoder(self.vae.post_quant_conv(latents))


class AutoencoderStage(SampleStage):
    """As the loop runs it."""

    def __init__(self, source: SampleSource, config: LoopConfig, first: Path | None = None) -> None:
        """first: file of weights to start from."""
        super().__init__(source, config)
        self.network = Autoencoding(config.seed)
        if first is not None:
            self.network.vae.load_state_dict(_unscaled(load_file(first)))

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> Tensor:
        """Crops, half of them mirrored."""
        crops = [_crop(sample, generator) for sample in raw]
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # for the noise on the latents
        return (torch.stack(crops) * 2 - 1).to(device)

    def save_weights(self, folder: Path) -> None:
        """vae.safetensors, scaled so that latents have the mean and spread that ComfyUI assumes."""
        save_file(scaled(self.network, self._whole(_MEASURED_PICTURES)), folder / VAE_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws pictures of the data beside their reconstructions."""
        photos = self._whole(SHEET_ROWS)
        with torch.no_grad():
            back = self.network.decode(self.network.moments(photos)[0])
        columns = (to_photos((one.movedim(1, -1) + 1) / 2) for one in (photos, back))
        save_sheet(path, list(zip(*columns, strict=True)))

    def _whole(self, count: int) -> Tensor:
        """The first pictures of the data, [count, 3, S, S], -1 to 1."""
        device = next(self.network.parameters()).device
        return (close_up(pictures(self._first(count))).movedim(-1, 1) * 2 - 1).to(device)


@torch.no_grad()
def scaled(network: Autoencoding, photos: Tensor) -> dict[str, Tensor]:
    """The VAE's weights with only the layers around the latents changed, so that each channel has mean 0 and standard
    deviation ``LATENT_STD``.

    photos: [n, 3, S, S] to measure by.
    """
    mean = torch.cat([network.moments(part)[0] for part in photos.split(32)])
    shift, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    factor = LATENT_STD / spread
    weights = {name: tensor.detach().cpu().clone() for name, tensor in network.vae.state_dict().items()}
    count = len(shift)
    into, out = "quant_conv", "post_quant_conv"
    bias = weights[f"{out}.bias"] + weights[f"{out}.weight"][:, :, 0, 0] @ shift.cpu()
    weights[f"{into}.weight"][:count] *= factor.cpu().view(-1, 1, 1, 1)
    weights[f"{into}.bias"][:count] = (weights[f"{into}.bias"][:count] - shift.cpu()) * factor.cpu()
    weights[f"{out}.weight"] /= factor.cpu().view(1, -1, 1, 1)
    weights[f"{out}.bias"] = bias
    return weights


def _unscaled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """``scaled`` weights with latents of standard deviation 1, as in training."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    for kind in ("weight", "bias"):
        weights[f"quant_conv.{kind}"][:LATENT_CHANNELS] /= LATENT_STD
    weights["post_quant_conv.weight"] *= LATENT_STD
    return weights


def _crop(sample: Sample, generator: torch.Generator) -> Tensor:
    """A square of the close-up, most often around the face, [3, S, S], 0 to 1."""
    picture = close_up(pictures([sample]))[0]
    size = torch.tensor((picture.shape[1], picture.shape[0]))
    corner = torch.rand(2, generator=generator) * (size - _CROP)
    if torch.rand(1, generator=generator) < _FACES:
        middle = in_close_up(torch.from_numpy(sample.keypoints).float().mean(0)) * size
        corner = middle - _CROP / 2 + torch.randn(2, generator=generator) * _CROP / 8
    x, y = corner.round().clamp_min(0).minimum(size - _CROP).int().tolist()
    crop = picture[y : y + _CROP, x : x + _CROP].movedim(-1, 0)
    return crop.flip(-1) if torch.rand(1, generator=generator) < 0.5 else crop


def _gradient_loss(one: Tensor, other: Tensor, axis: int) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels."""
    return F.l1_loss(one.diff(dim=axis), other.diff(dim=axis))
