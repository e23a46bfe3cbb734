"""The stages that train UNet, adapter and IMR for likeness: to paint the face of the tokens even if the picture so far
shows another one, and so that ArcFace sees in it what it sees in the true one. Half of the people have tokens that the
IMR has edited.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint import IMR, IMR_FILE
from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ...saa import SaaSettings
from ..config import AnchorSettings
from ..data.sample import Sample
from ..inputs import embeddings_of
from ..losses import feature_loss, loss_dict
from ..networks import Layouts, TrainableAdapter, token_spread
from ..reconfiguration import ReconfigureCollator
from ..stages import AnchorStage, SampleSource, save_motion_network
from .anchoring import CloseUpAnchoring
from .edits import EditCollator, Editor, Edits, Pair
from .framing import in_close_up
from .perception import Perception, embedding_errors, feature_errors, similarity_errors
from .rollout import Rollout, rows_of
from .together import PlacedBatch, boosted_layouts, placed

UNET_ONLY_EVERY_IN_LIKENESS, SCENE_SHARE_IN_LIKENESS = 3, 0.6
"""As in ``together`` and ``denoising``. With fewer scenes of several people, third heads appeared between two."""
_ARCFACE_SHARE = 0.6  # of a batch that ArcFace sees: it takes as long as everything else together
_MAX_TIMESTEP = 850  # of 1000; from here on a face is too blurred for ArcFace
_ARCFACE_WEIGHTS = {"features": 1.0, "embedding": 0.5, "confused": 1.5, "unlike": 5.0}  # of the losses through ArcFace
_THRESHOLD, _MARGIN, _SHARPNESS = 0.47, 0.05, 16.0  # of cosines: a person's own should be well above, others' below
_SAME = 0.62  # cosine of identities from which on they count as one person's
_ROLLED_OUT_WEIGHT = 0.5  # of the noise loss of rolled-out pictures: their own clothes and walls lead elsewhere


@dataclass(frozen=True, eq=False)
class LikenessBatch(PlacedBatch):
    """edits: of the people with edited tokens, if any; the others have those of the photo itself. sources: [B, 512],
    identities of the photos that the tokens come from, 0 for dropped faces. rolled_out: [B], which pictures are the
    UNet's own.
    """

    edits: Edits | None
    sources: Tensor
    rolled_out: Tensor


class LikenessAnchoring(CloseUpAnchoring[LikenessBatch]):
    """Anchoring with losses through ArcFace. Trains ``adapter`` and ``editor``."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        adapter: TrainableAdapter,
        config: AnchorSettings,
        editor: Editor,
        encoders: FrozenEncoders,
        perception: Perception,
        known: Tensor,
    ) -> None:
        """known: [N, 512], identities of all people to be distinguished."""
        super().__init__(denoiser, adapter, config)
        self.editor = editor
        self._encoders, self._perception, self._known = encoders, perception, known

    def tokens(self, batch: LikenessBatch) -> Tensor:
        """Tokens of the people in a batch, some of them edited, [B, T, D]."""
        own = super().tokens(batch)
        edits = batch.edits
        return own if edits is None else own.index_copy(0, edits.rows, self.editor(edits))

    def forward(self, batch: LikenessBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. "edited": the feature loss of reconfiguration."""
        tokens = self.tokens(batch)
        predicted = self.predict(batch, tokens)
        weights = torch.where(batch.rolled_out, _ROLLED_OUT_WEIGHT, 1.0)
        noise = (self.noise_losses(batch, predicted) * weights).mean()
        perceptual = self._arcface_losses(batch, predicted)
        edits = batch.edits
        edited = tokens.new_zeros(()) if edits is None else feature_loss(tokens[edits.rows], edits.batch.target_tokens)
        return loss_dict(
            noise + sum(weight * perceptual[name] for name, weight in _ARCFACE_WEIGHTS.items()) + edited,
            noise=noise,
            edited=edited,
            **perceptual,
            token_spread=token_spread(tokens, batch.shown),
        )

    def _layout(self, batch: LikenessBatch) -> Layouts:
        return boosted_layouts(batch.regions, self._settings.layout_boost, batch.latents.device)

    def _arcface_losses(self, batch: LikenessBatch, predicted: Tensor) -> dict[str, Tensor]:
        """Losses through ArcFace on the expected pictures of some people, by the names of _ARCFACE_WEIGHTS: on its
        features, on the embedding, on confusion with others, and on similarities to all people, compared with those of
        the photo. 0 if fewer than two pictures qualify.
        """
        limit = max(2, round(_ARCFACE_SHARE * len(predicted)))
        early_on = _MAX_TIMESTEP / 1000 * self._denoiser.timesteps
        rows = (batch.shown & (batch.timesteps < early_on)).nonzero().flatten()[:limit]
        if len(rows) < 2:
            return dict.fromkeys(_ARCFACE_WEIGHTS, predicted.new_zeros(()))
        some = rows_of(batch, rows)
        expected = self._denoiser.predict_clean(some.latents, some.noise, some.timesteps, predicted[rows])
        keypoints = in_close_up(some.keypoints)
        painted = self._perception(self._encoders.differentiable_pictures(expected), keypoints)
        with torch.no_grad():
            true = self._perception(self._encoders.differentiable_pictures(some.latents), keypoints)
        errors = {
            "features": feature_errors(painted, true),
            "embedding": embedding_errors(painted, true),
            "confused": confusion(painted.embeddings, batch.sources[rows], self._known),
            "unlike": similarity_errors(painted, true, self._known),
        }
        sharpness = (1.2 - some.timesteps / self._denoiser.timesteps).clamp(0.3, 1)  # early predictions are blurred
        return {name: (of_each * sharpness).sum() / limit for name, of_each in errors.items()}


def confusion(faces: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """How far a single threshold for all faces is from separating each of them from other people, [B]: the pairwise
    sigmoid loss (SigLIP, arXiv 2303.15343).

    faces, own: [B, 512], of length 1, whom they show and whom they should. known: [N, 512], of all people.

    The worse a face is, the more it counts, so most is learned from people whose faces are similar to nobody.
    """
    others = own @ known.T < _SAME
    missing = F.softplus((_THRESHOLD + _MARGIN - (faces * own).sum(1)) * _SHARPNESS)
    mistaken = F.softplus((faces @ known.T - _THRESHOLD + _MARGIN) * _SHARPNESS) * others
    return (missing + mistaken.sum(1) / others.sum(1).clamp(min=1)) / _SHARPNESS


class LikenessStage(AnchorStage):
    """SAA and IMR. The face encoder is frozen, and with it what tokens mean to the IMR."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        config: AnchorSettings,
        editor: Editor,
        perception: Perception,
        known: Tensor,
    ) -> None:
        """editor, perception: on the device of the encoders. known: [N, 512], identities of all people."""
        self._editor, self._perception, self._known = editor, perception, known.to(encoders.device)
        super().__init__(denoiser, encoders, source, config)
        adapter, settings = self.network.adapter, SaaSettings(threshold=config.threshold)
        self._edits = EditCollator(ReconfigureCollator(encoders, denoiser, adapter, diffusion_share=0.0))
        self._rollout = Rollout(denoiser, encoders, adapter, settings)

    def _anchoring(self, adapter: TrainableAdapter) -> LikenessAnchoring:
        adapter.face_encoder.requires_grad_(False)
        return LikenessAnchoring(
            self._denoiser, adapter, self._config, self._editor, self._encoders, self._perception, self._known
        )

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[list[Pair]]:
        """Lists of ``batch_size`` people, two photos each, without the first ``skip`` lists."""
        size = self._config.batch_size
        people = self._source.people(process, processes, 2, skip * size)
        while True:
            yield list(islice(people, size))

    def target_samples(self, raw: list[Pair]) -> list[Sample]:
        """The photos to paint."""
        return [target for _, target in raw]

    def make_batch(self, raw: list[Pair], generator: torch.Generator, device: torch.device) -> LikenessBatch:
        """The input of ``LikenessAnchoring``."""
        shown = placed(super().make_batch(raw, generator, device), self._denoiser.timesteps, generator)
        edits = self._edits.make(raw, shown.shown, generator, device)
        sources = shown.identities.clone()
        if edits is not None:
            sources[edits.rows] = embeddings_of([raw[row][0] for row in edits.rows.tolist()]).to(device)
        none = torch.zeros(len(raw), dtype=torch.bool, device=device)
        batch = LikenessBatch(**vars(shown), edits=edits, sources=sources, rolled_out=none)
        with torch.no_grad():
            tokens = self.network.tokens(batch)
        batch, rolled_out = self._rollout.take(batch, tokens, generator)
        return replace(batch, rolled_out=rolled_out)

    def save_weights(self, folder: Path) -> None:
        """adapter.safetensors and imr.safetensors."""
        super().save_weights(folder)
        save_motion_network(IMR, self._editor.imr, folder / IMR_FILE)


def keep_self_attention(unet: nn.Module, adapter: TrainableAdapter) -> None:
    """Freezes a UNet's self-attention and its low-rank updates.

    Training on single faces teaches it that a whole picture belongs to one person; people in one picture then blend.
    """
    for layer in adapter.layers:
        if not layer.is_cross:
            unet.get_submodule(layer.path).requires_grad_(False)
            adapter.updates.layers[str(layer.index)].requires_grad_(False)
