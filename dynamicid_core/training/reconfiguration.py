"""Reconfiguration (paper section 3.4): IMR and keypoint encoder learn to change the motion of tokens.

L = |xi_edited - xi_target|^2 + lambda |eps(xi_edited) - eps(xi_target)|^2, over several photos of one person.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ..comfy_host.identity_patch import text_attention
from ..imr import Imr, KeypointEncoder
from ..keypoints import encoder_input
from ..saa import SaaSettings
from .config import ReconfigureSettings
from .data.sample import Sample
from .inputs import face_inputs, pictures
from .losses import diffusion_consistency_loss, feature_loss, loss_dict
from .networks import TrainableAdapter


@dataclass(frozen=True, eq=False)
class DiffusionBatch:
    """latents, noise: [B * R, 4, h, w] of the targets; timesteps [B * R]; context: [B * R, 77, D] of their captions."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    context: Tensor


@dataclass(frozen=True, eq=False)
class ReconfigureBatch:
    """B people, each with one source photo and R targets; targets of all people are rows one after the other.

    source_tokens: [B, T, D]; target_tokens: [B * R, T, D]. source_rasters: [B, 1, 96, 96]; target_rasters. source_text:
    [B, X], pooled face prompts; target_text. diffusion: the UNet's batch, None without the diffusion loss.
    """

    source_tokens: Tensor
    target_tokens: Tensor
    source_rasters: Tensor
    target_rasters: Tensor
    source_text: Tensor
    target_text: Tensor
    diffusion: DiffusionBatch | None


class Reconfiguration(nn.Module):
    """The losses of a batch. Trains ``imr`` and ``keypoint_encoder``."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        adapter: TrainableAdapter,
        imr: Imr,
        keypoint_encoder: KeypointEncoder,
        config: ReconfigureSettings,
    ) -> None:
        super().__init__()
        self.imr, self.keypoint_encoder = imr, keypoint_encoder
        # The fewer batches the UNet sees, the more each counts, so that lambda means the same with any share.
        self._denoiser, self._weight = denoiser, config.diffusion_weight / (config.diffusion_share or 1.0)
        # When the UNet last looked, no number before: every step tells the same losses.
        self._consistency = torch.tensor(float("nan"))
        self._frozen = (adapter.requires_grad_(False).eval(),)  # in a tuple, so that it does not count as ours
        self._settings = SaaSettings(threshold=config.threshold)
        denoiser.attach_updates(adapter.updates.add_to)

    def forward(self, batch: ReconfigureBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise."""
        edited = self.edit(batch)
        features = feature_loss(edited, batch.target_tokens)
        if self._weight == 0:
            return loss_dict(features, feature=features)
        if batch.diffusion is None:
            last = self._consistency.to(features.device)
            return loss_dict(features, feature=features, consistency=last)
        with torch.no_grad():
            target = self.predict(batch.diffusion, batch.target_tokens)
        consistency = diffusion_consistency_loss(self.predict(batch.diffusion, edited), target)
        self._consistency = consistency.detach()
        return loss_dict(features + self._weight * consistency, feature=features, consistency=self._consistency)

    def edit(self, batch: ReconfigureBatch) -> Tensor:
        """Each source's tokens with the motion of each of its targets, [B * R, T, D]."""
        return edited_tokens(self.imr, self.keypoint_encoder, batch)

    def predict(self, batch: DiffusionBatch, tokens: Tensor) -> Tensor:
        """The noise that UNet and adapter predict in the targets' latents with these tokens, [B * R, 4, h, w]."""
        patches = self._frozen[0].patches(tokens, self._settings, text_attention)
        noisy = self._denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        return self._denoiser(noisy, batch.timesteps, batch.context, patches)


def edited_tokens(imr: Imr, keypoint_encoder: KeypointEncoder, batch: ReconfigureBatch) -> Tensor:
    """Each source's tokens with the motion of each of its targets, [B * R, T, D]."""
    people = len(batch.source_tokens)
    rows = len(batch.target_tokens) // people
    motion = keypoint_encoder(torch.cat((batch.source_rasters, batch.target_rasters)))
    sources, targets = motion[:people], motion[people:]
    edited = [
        imr(
            batch.source_tokens[i : i + 1],
            sources[i : i + 1],
            targets[i * rows : (i + 1) * rows],
            batch.source_text[i : i + 1],
            batch.target_text[i * rows : (i + 1) * rows],
        )
        for i in range(people)
    ]
    return torch.cat(edited)


class ReconfigureCollator:
    """Makes batches of people. Each is a list of samples: the source and its targets."""

    def __init__(
        self, encoders: FrozenEncoders, denoiser: DenoisingModel, adapter: TrainableAdapter, diffusion_share: float
    ) -> None:
        """diffusion_share: of the batches that the UNet sees."""
        self._encoders, self._timesteps, self._adapter = encoders, denoiser.timesteps, adapter
        self._share = diffusion_share

    def make(self, people: list[list[Sample]], generator: torch.Generator, device: torch.device) -> ReconfigureBatch:
        """A batch on the device."""
        sources = [samples[0] for samples in people]
        targets = [sample for samples in people for sample in samples[1:]]
        source_text = self._encoders.texts([sample.face_prompt for sample in sources])[1]
        target_text = self._encoders.texts([sample.face_prompt for sample in targets])[1]
        with_diffusion = float(torch.rand(1, generator=generator)) < self._share
        return ReconfigureBatch(
            self._tokens(sources, device),
            self._tokens(targets, device),
            _rasters(sources).to(device),
            _rasters(targets).to(device),
            source_text.to(device),
            target_text.to(device),
            self._diffusion(targets, generator, device) if with_diffusion else None,
        )

    def _diffusion(self, targets: list[Sample], generator: torch.Generator, device: torch.device) -> DiffusionBatch:
        latents = self._encoders.latents(pictures(targets)).to(device)
        return DiffusionBatch(
            latents,
            torch.randn(latents.shape, generator=generator).to(device),
            torch.randint(self._timesteps, (len(targets),), generator=generator).to(device),
            self._encoders.contexts([sample.caption for sample in targets]).to(device),
        )

    @torch.no_grad()
    def _tokens(self, samples: list[Sample], device: torch.device) -> Tensor:
        embeddings, features = face_inputs(samples, self._encoders, self._adapter.variant)
        return self._adapter.tokens(embeddings.to(device), features.to(device))


def _rasters(samples: list[Sample]) -> Tensor:
    return torch.cat([encoder_input(torch.from_numpy(sample.keypoints)) for sample in samples])
