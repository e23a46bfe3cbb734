"""Anchoring of the miniature: the noise loss of the paper, and beside it whether the picture that the UNet expects
shows the person, and the shape of their face.
"""

from typing import Any

from torch import Tensor

from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ..anchoring import Anchoring, Batch
from ..config import AnchorSettings
from ..losses import loss_dict, min_snr_weights
from ..networks import TrainableAdapter, token_spread
from ..stages import AnchorStage, SampleSource
from .framing import close_up_weights
from .recogniser import Recogniser, identity_errors, shape_errors

_SNR_LEAST = 0.05


class CloseUpAnchoring(Anchoring[Batch]):
    """Anchoring on close-ups."""

    def noise_loss(self, batch: Batch, predicted: Tensor) -> Tensor:
        """The mean of ``noise_losses``."""
        return self.noise_losses(batch, predicted).mean()

    def noise_losses(self, batch: Batch, predicted: Tensor) -> Tensor:
        """Of predictions [B, C, h, w], [B]: Min-SNR weights, and more where there is little but noise, since there it
        is decided who is painted.
        """
        weights = close_up_weights(batch.keypoints, batch.latents)
        errors = ((predicted - batch.noise).square() * weights).mean((1, 2, 3))
        snr = self._denoiser.signal_to_noise(batch.timesteps)
        return errors * (min_snr_weights(snr) + 1 / snr.clamp(min=_SNR_LEAST))


class RecognisedAnchoring(CloseUpAnchoring[Batch]):
    """With a recogniser that looks on.

    identity_weight, shape_weight: how much its errors count beside the noise loss.
    """

    identity_weight, shape_weight = 1.0, 0.2

    def __init__(
        self, denoiser: DenoisingModel, adapter: TrainableAdapter, config: AnchorSettings, recogniser: Recogniser
    ) -> None:
        super().__init__(denoiser, adapter, config)
        self._recogniser = (recogniser,)  # in a tuple, so that it does not count as ours

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. Faces that were dropped need not be recognised."""
        tokens = self.tokens(batch)
        predicted = self.predict(batch, tokens)
        noise = self.noise_loss(batch, predicted)
        expected = self._denoiser.expected(batch.latents, batch.noise, batch.timesteps, predicted)
        embeddings, shapes = self._recogniser[0](expected)
        shown = batch.shown.float()
        identity = (identity_errors(embeddings, batch.identities) * shown).mean()
        shape = (shape_errors(shapes, batch.keypoints) * shown).mean()
        return loss_dict(
            noise + self.identity_weight * identity + self.shape_weight * shape,
            noise=noise,
            identity=identity,
            shape=shape,
            token_spread=token_spread(tokens, batch.shown),
        )


class RecognisedAnchorStage(AnchorStage):
    """Face encoder and SAA."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        config: AnchorSettings,
        recogniser: Recogniser,
    ) -> None:
        self._recogniser = recogniser.to(encoders.device)
        super().__init__(denoiser, encoders, source, config)

    def _anchoring(self, adapter: TrainableAdapter) -> RecognisedAnchoring[Any]:
        if not self._config.start_from:
            adapter.init_silent()
        return RecognisedAnchoring(self._denoiser, adapter, self._config, self._recogniser)
