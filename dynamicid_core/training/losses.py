"""The losses of both stages (paper section 3.4), and the form in which networks return them."""

import torch.nn.functional as F
from torch import Tensor


def loss_dict(loss: Tensor, **parts: Tensor) -> dict[str, Tensor]:
    """Losses by name as the loop takes them: "loss", which is minimised, and detached parts for curves and logs."""
    return {"loss": loss} | {name: part.detach() for name, part in parts.items()}


def noise_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Anchoring: mean squared error of the predicted noise, both [B, 4, h, w], in float32."""
    return F.mse_loss(predicted.float(), noise.float())


def min_snr_weights(snr: Tensor, limit: float = 5.0) -> Tensor:
    """Min-SNR weights of noise errors (arXiv 2303.09556), for signal-to-noise ratios [B]."""
    return snr.clamp(max=limit) / snr


def feature_loss(edited: Tensor, target: Tensor) -> Tensor:
    """Reconfiguration: mean squared error between edited tokens and those of the target photo, both [B, T, D]."""
    return F.mse_loss(edited.float(), target.float())


def diffusion_consistency_loss(with_edited: Tensor, with_target: Tensor) -> Tensor:
    """Reconfiguration: mean squared error between the noise predicted with edited tokens and with those of the target
    photo, both [B, 4, h, w]. The second is the target and takes no gradient.
    """
    return F.mse_loss(with_edited.float(), with_target.detach().float())
