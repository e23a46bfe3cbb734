"""Anchoring (paper section 3.4): face encoder and SAA learn to paint a person from the tokens of their photo."""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Variant
from ..comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ..comfy_host.identity_patch import text_attention
from ..images import Photo
from ..saa import SaaSettings
from .config import AnchorSettings
from .data.sample import Sample
from .inputs import embeddings_of, face_inputs, keypoints_of, pictures
from .losses import loss_dict, noise_loss
from .networks import Layouts, TrainableAdapter, token_spread

_BELOW_CHIN = 0.03  # in heights of the picture


@dataclass(frozen=True, eq=False)
class AnchorBatch:
    """latents, noise: [B, 4, h, w]. timesteps: [B]. context: [B, 77, D]. embeddings: [B, 512], of the crop that the
    adapter's variant shows ArcFace. clip_features: [B, patches, size]. identities: [B, 512], the embeddings by which
    ArcFace recognises the people, whatever the variant. keypoints: [B, 106, 2] in fractions of the picture. Texts and
    faces have been dropped already; dropped faces have identities of 0.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    context: Tensor
    embeddings: Tensor
    clip_features: Tensor
    identities: Tensor
    keypoints: Tensor

    @property
    def shown(self) -> Tensor:
        """[B], whose faces have not been dropped."""
        return self.identities.any(dim=1)


Batch = TypeVar("Batch", bound=AnchorBatch)


class Anchoring(nn.Module, Generic[Batch]):
    """The loss of a batch. Trains ``adapter``."""

    def __init__(self, denoiser: DenoisingModel, adapter: TrainableAdapter, config: AnchorSettings) -> None:
        super().__init__()
        self.adapter = adapter
        self._denoiser = denoiser
        self._settings = SaaSettings(threshold=config.threshold)
        denoiser.attach_updates(adapter.updates.add_to)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. "token_spread" falls when tokens become the same for all."""
        tokens = self.tokens(batch)
        loss = noise_loss(self.predict(batch, tokens), batch.noise)
        return loss_dict(loss, token_spread=token_spread(tokens, batch.shown))

    def tokens(self, batch: Batch) -> Tensor:
        """Tokens of the people in a batch, [B, T, D]."""
        return self.adapter.tokens(batch.embeddings, batch.clip_features)

    def predict(self, batch: Batch, tokens: Tensor) -> Tensor:
        """The noise that UNet and adapter predict for a batch with these tokens, [B, 4, h, w]."""
        patches = self.adapter.patches(tokens, self._settings, text_attention, self._layout(batch))
        noisy = self._denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        return self._denoiser(noisy, batch.timesteps, batch.context, patches)

    def _layout(self, batch: Batch) -> Layouts | None:
        """Where the people are; None if anywhere."""
        return None


class AnchorCollator:
    """Makes batches of samples. All randomness comes from the given generator, so that a step can be repeated."""

    def __init__(
        self, encoders: FrozenEncoders, denoiser: DenoisingModel, config: AnchorSettings, variant: Variant
    ) -> None:
        """variant: the adapter's, which determines what ArcFace and CLIP see of the photos."""
        self._encoders, self._timesteps, self._config = encoders, denoiser.timesteps, config
        self._variant = variant

    def make(self, samples: list[Sample], generator: torch.Generator, device: torch.device) -> AnchorBatch:
        """A batch on the device."""
        config = self._config
        draw = torch.rand(len(samples), generator=generator)
        both = draw < config.drop_both
        no_text = both | ((draw >= config.drop_both) & (draw < config.drop_both + config.drop_text))
        no_face = both | (draw >= 1 - config.drop_face)
        captions = ["" if drop else s.caption for s, drop in zip(samples, no_text.tolist(), strict=True)]
        latents = self._encoders.latents(pictures(samples))
        timesteps = torch.randint(self._timesteps, (len(samples),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        shown = with_other_clothes(samples, config.other_clothes, generator) if config.other_clothes else samples
        seen, features = face_inputs(shown, self._encoders, self._variant)
        identities = embeddings_of(samples)
        seen[no_face] = 0
        identities[no_face] = 0
        features[no_face.to(features.device)] = self._encoders.no_face_features()
        return AnchorBatch(
            latents.to(device),
            noise.to(device),
            timesteps.to(device),
            self._encoders.contexts(captions).to(device),
            seen.to(device),
            features.to(device),
            identities.to(device),
            keypoints_of(samples).to(device),
        )


def with_other_clothes(samples: list[Sample], share: float, generator: torch.Generator) -> list[Sample]:
    """The samples, a share of them with another sample's clothes: its picture from the chin down."""
    changed = (torch.rand(len(samples), generator=generator) < share).tolist()
    others = torch.randperm(len(samples), generator=generator).tolist()
    return [
        replace(sample, picture=_shoulders_of(samples[other], sample)) if change else sample
        for sample, change, other in zip(samples, changed, others, strict=True)
    ]


def _shoulders_of(other: Sample, sample: Sample) -> Photo:
    height = len(sample.picture)
    chin, chin_of_other = (round((float(one.keypoints[:, 1].max()) + _BELOW_CHIN) * height) for one in (sample, other))
    # Each picture is cut at its own chin, or the other's mouth or neck would show. Missing rows repeat the last one.
    rows = (np.arange(chin, height) - chin + chin_of_other).clip(max=height - 1)
    return np.concatenate((sample.picture[:chin], other.picture[rows]))
