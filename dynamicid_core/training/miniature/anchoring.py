"""Anchoring of the miniature: besides the paper's noise loss, losses on whether the latents that the UNet expects show
the person and the shape of their face.
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

_MIN_SNR = 0.05


class CloseUpAnchoring(Anchoring[Batch]):
    """Anchoring on close-ups."""

    def noise_loss(self, batch: Batch, predicted: Tensor) -> Tensor:
        """The mean of ``noise_losses``."""
        return self.noise_losses(batch, predicted).mean()

    def noise_losses(self, batch: Batch, predicted: Tensor) -> Tensor:
        """The loss [B] of each prediction [B, C, h, w], with Min-SNR weights plus more weight at high noise, where the
        identity is decided.
        """
        weights = close_up_weights(batch.keypoints, batch.latents)
        errors = ((predicted - batch.noise).square() * weights).mean((1, 2, 3))
        snr = self._denoiser.signal_to_noise(batch.timesteps)
        return errors * (min_snr_weights(snr) + 1 / snr.clamp(min=_MIN_SNR))


class RecognisedAnchoring(CloseUpAnchoring[Batch]):
    """Anchoring with losses through a recogniser.

    identity_weight, shape_weight: of its errors beside the noise loss.
    """

    identity_weight, shape_weight = 1.0, 0.2

    def __init__(
        self, denoiser: DenoisingModel, adapter: TrainableAdapter, config: AnchorSettings, recogniser: Recogniser
    ) -> None:
        super().__init__(denoiser, adapter, config)
        self._recogniser = (recogniser,)  # in a tuple, so that it is no submodule

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. Dropped faces need not be recognised."""
        tokens = self.tokens(batch)
        predicted = self.predict(batch, tokens)
        noise = self.noise_loss(batch, predicted)
        expected = self._denoiser.predict_clean(batch.latents, batch.noise, batch.timesteps, predicted)
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
