"""Anchoring of the miniature: the noise loss of the paper, and beside it whether the picture that the UNet expects
shows the person, and the shape of their face.
"""

from torch import Tensor

from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ..anchoring import AnchorBatch, Anchoring
from ..config import AnchorConfig
from ..networks import TrainableAdapter, token_spread
from ..stages import AnchorStage, SampleSource
from .framing import face_weights, in_close_up
from .recogniser import Recogniser, identity_errors, shape_errors

_SNR_LIMIT, _SNR_LEAST = 5.0, 0.05
_FACE_WEIGHT = 3.0  # how much more an error in a face counts
_IDENTITY_WEIGHT, _SHAPE_WEIGHT = 1.0, 0.2


class RecognisedAnchoring(Anchoring):
    """Anchoring with a recogniser that looks on."""

    def __init__(
        self, denoiser: DenoisingModel, adapter: TrainableAdapter, config: AnchorConfig, recogniser: Recogniser
    ) -> None:
        super().__init__(denoiser, adapter, config)
        self._recogniser = (recogniser,)  # in a tuple, so that it does not count as ours

    def forward(self, batch: AnchorBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. Faces that were dropped need not be recognised."""
        tokens = self.tokens(batch)
        predicted = self.predict(batch, tokens)
        noise = (self._noise_errors(batch, predicted) * self._weights(batch.timesteps)).mean()
        expected = self._denoiser.expected(batch.latents, batch.noise, batch.timesteps, predicted)
        embeddings, shapes = self._recogniser[0](expected)
        shown = batch.embeddings.any(dim=1).float()
        identity = (identity_errors(embeddings, batch.embeddings) * shown).mean()
        shape = (shape_errors(shapes, batch.keypoints) * shown).mean()
        return {
            "loss": noise + _IDENTITY_WEIGHT * identity + _SHAPE_WEIGHT * shape,
            "noise": noise.detach(),
            "identity": identity.detach(),
            "shape": shape.detach(),
            "token_spread": token_spread(tokens),
        }

    def _noise_errors(self, batch: AnchorBatch, predicted: Tensor) -> Tensor:
        height, width = batch.latents.shape[2:]
        weights = face_weights(in_close_up(batch.keypoints), height, width, _FACE_WEIGHT)
        return ((predicted - batch.noise).square() * weights).mean((1, 2, 3))

    def _weights(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights (arXiv 2303.09556), and as much again for the picture where there is little but noise:
        there it is decided who is painted.
        """
        snr = self._denoiser.signal_to_noise(timesteps)
        return snr.clamp(max=_SNR_LIMIT) / snr + 1 / snr.clamp(min=_SNR_LEAST)


class RecognisedAnchorStage(AnchorStage):
    """Face encoder and SAA."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        config: AnchorConfig,
        recogniser: Recogniser,
    ) -> None:
        super().__init__(denoiser, encoders, source, config)
        adapter = self.network.adapter
        if not config.start_from:
            adapter.start_silent()
        self.network: Anchoring = RecognisedAnchoring(denoiser, adapter, config, recogniser.to(encoders.device))
