"""UNet, adapter and IMR of the miniature learn what a photo alone does not teach: to paint the face that the tokens
tell of even if what they painted so far shows another one, and to paint it so that ArcFace sees in it what it sees in
the true one; half of the people by tokens that the IMR has edited.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint import IMR
from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders, text_attention
from ...saa import SaaSettings
from ..anchoring import AnchorBatch
from ..config import AnchorConfig
from ..data.sample import Sample
from ..losses import feature_loss
from ..networks import Layouts, TrainableAdapter, token_spread
from ..reconfiguration import ReconfigureBatches
from ..stages import IMR_FILE, AnchorStage, SampleSource, save_motion_network, tokens_of_nobody
from .anchoring import CloseUpAnchoring
from .edits import EditBatches, Editor, Edits, Pair
from .framing import in_close_up
from .perception import Perception, embedding_errors, feature_errors, unlike_the_photo
from .together import PlacedBatch, boosted_layouts, placed, placed_layouts, while_boosted

ALONE_IN_LIKENESS, SCENES_IN_LIKENESS = 3, 0.6
"""As in ``together`` and ``denoising``. With fewer scenes of several people, third heads came up between two."""
_LOOKED_AT = 0.6  # of a batch, how much ArcFace looks at: it takes as long as the rest together
_TOO_EARLY = 850  # of 1000 timesteps; from here on a face is too blurred for it
_FEATURES, _EMBEDDING, _CONFUSED, _UNLIKE = 1.0, 0.5, 1.5, 5.0
_THRESHOLD, _MARGIN, _SHARPNESS = 0.45, 0.1, 10.0  # of cosines: what is one's own belongs well above it, others below
_GONE_ON = 0.5  # share of the pictures that have gone a step on
_LEAST = 200  # of 1000 timesteps: with less noise there is nothing left to go
_ON = 0.3, 0.97  # to which part of its timestep a picture goes on
_CFG = 1.0, 4.0
_SWAPPED = 0.25  # share of the pictures that have gone on as somebody else


@dataclass(frozen=True, eq=False)
class LikenessBatch(PlacedBatch):
    """edits: of the people with edited tokens, if any; the others have those of the photo itself. sources: [B, 512],
    identities of the photos that tokens come from, 0 for nobody.
    """

    edits: Edits | None
    sources: Tensor


class LikenessAnchoring(CloseUpAnchoring):
    """Anchoring with ArcFace looking on. What trains is ``adapter`` and ``editor``."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        adapter: TrainableAdapter,
        config: AnchorConfig,
        editor: Editor,
        encoders: FrozenEncoders,
        perception: Perception,
    ) -> None:
        super().__init__(denoiser, adapter, config)
        self.editor = editor
        self._encoders, self._perception = encoders, perception

    def tokens(self, batch: AnchorBatch) -> Tensor:
        """Of the people in a batch, some of them edited, [B, T, D]."""
        own = super().tokens(batch)
        edits = _of_likeness(batch).edits
        return own if edits is None else own.index_copy(0, edits.rows, self.editor(edits))

    def forward(self, batch: AnchorBatch) -> dict[str, Tensor]:
        """Losses by name; "loss" is the one to minimise. "edited": the feature loss of reconfiguration."""
        tokens = self.tokens(batch)
        predicted = self.predict(batch, tokens)
        noise = self.noise_loss(batch, predicted)
        features, embedding, confused, unlike = self._seen(batch, predicted)
        seen = _FEATURES * features + _EMBEDDING * embedding + _CONFUSED * confused + _UNLIKE * unlike
        edits = _of_likeness(batch).edits
        edited = tokens.new_zeros(()) if edits is None else feature_loss(tokens[edits.rows], edits.batch.target_tokens)
        return {
            "loss": noise + seen + edited,
            "noise": noise.detach(),
            "edited": edited.detach(),
            "features": features.detach(),
            "embedding": embedding.detach(),
            "confused": confused.detach(),
            "unlike": unlike.detach(),
            "token_spread": token_spread(tokens),
        }

    def _layout(self, batch: AnchorBatch) -> Layouts:
        return placed_layouts(batch, self._settings.layout_boost)

    def _seen(self, batch: AnchorBatch, predicted: Tensor) -> Tensor:
        """What ArcFace finds wrong with the expected pictures of some people, [4]: in its features, in the embedding,
        that it confuses them with others, and that people are not as near as in the photo. 0 if fewer than two can be
        looked at.
        """
        most = max(2, round(_LOOKED_AT * len(predicted)))
        early_on = _TOO_EARLY / 1000 * self._denoiser.timesteps
        rows = (batch.identities.any(dim=1) & (batch.timesteps < early_on)).nonzero().flatten()[:most]
        if len(rows) < 2:
            return predicted.new_zeros(4)
        some = _rows(batch, rows)
        expected = self._denoiser.expected(some.latents, some.noise, some.timesteps, predicted[rows])
        keypoints, people = in_close_up(some.keypoints), batch.identities.any(dim=1).nonzero().flatten()
        painted = self._perception(self._encoders.differentiable_pictures(expected), keypoints)
        with torch.no_grad():
            true = self._perception(self._encoders.differentiable_pictures(some.latents), keypoints)
        errors = torch.stack(
            (
                feature_errors(painted, true),
                embedding_errors(painted, true),
                confusion(painted.embeddings @ _of_likeness(batch).sources[people].T, rows[:, None] == people),
                unlike_the_photo(painted, true, batch.identities[people]),
            )
        )
        sharp = (1.2 - some.timesteps / self._denoiser.timesteps).clamp(0.3, 1)  # what is expected early on is blurred
        return (errors * sharp).sum(1) / most


def confusion(cosines: Tensor, own: Tensor) -> Tensor:
    """How far one threshold for all faces is from telling each of them from other people, [B]: the pairwise sigmoid
    loss (SigLIP, arXiv 2303.15343).

    cosines: of B faces with N identities, [B, N]. own: which identity is that of the face, [B, N], one in each row.

    The worse a face is, the more it counts, so most is learned from people who seem far from everybody.
    """
    wrong_by = torch.where(own, _THRESHOLD + _MARGIN - cosines, cosines - _THRESHOLD + _MARGIN)
    errors = F.softplus(wrong_by * _SHARPNESS) / _SHARPNESS
    return errors[own] + (errors * ~own).sum(1) / (~own).sum(1)


class LikenessStage(AnchorStage):
    """SAA and IMR. The face encoder stays as it is, and with it what tokens mean to the IMR."""

    def __init__(
        self,
        denoiser: DenoisingModel,
        encoders: FrozenEncoders,
        source: SampleSource,
        config: AnchorConfig,
        editor: Editor,
        perception: Perception,
    ) -> None:
        """editor, perception: on the device of the encoders."""
        self._editor, self._perception = editor, perception
        super().__init__(denoiser, encoders, source, config)
        self._edits = EditBatches(ReconfigureBatches(encoders, denoiser, self.network.adapter, diffusion_share=0.0))

    def _anchoring(self, adapter: TrainableAdapter) -> LikenessAnchoring:
        adapter.face_encoder.requires_grad_(False)
        return LikenessAnchoring(self._denoiser, adapter, self._config, self._editor, self._encoders, self._perception)

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[list[Pair]]:
        """Lists of ``batch_size`` people, two photos each, without the first ``skip`` lists."""
        size = self._config.batch_size
        people = self._source.people(process, processes, 2, skip * size)
        while True:
            yield list(islice(people, size))

    def painted(self, raw: list[Pair]) -> list[Sample]:
        """The photos to paint."""
        return [target for _, target in raw]

    def make_batch(self, raw: list[Pair], chance: torch.Generator, device: torch.device) -> LikenessBatch:
        """What ``LikenessAnchoring`` takes."""
        shown = placed(super().make_batch(raw, chance, device), self._denoiser.timesteps, chance)
        edits = self._edits.make(raw, shown.identities.any(dim=1), chance, device)
        sources = shown.identities.clone()
        if edits is not None:
            of_edits = [torch.from_numpy(raw[row][0].embedding).float() for row in edits.rows.tolist()]
            sources[edits.rows] = torch.stack(of_edits).to(device)
        batch = LikenessBatch(**vars(shown), edits=edits, sources=sources)
        draws = torch.rand(4, len(raw), generator=chance).to(device)
        least = _LEAST / 1000 * self._denoiser.timesteps
        rows = ((draws[0] < _GONE_ON) & (batch.timesteps >= least)).nonzero().flatten()
        return self._gone_on(batch, rows, draws[1:]) if len(rows) else batch

    def save_weights(self, folder: Path) -> None:
        """adapter.safetensors and imr.safetensors."""
        super().save_weights(folder)
        save_motion_network(IMR, self._editor.imr, folder / IMR_FILE)

    @torch.no_grad()
    def _gone_on(self, batch: LikenessBatch, rows: Tensor, draws: Tensor) -> LikenessBatch:
        """Rows of the batch a sampling step later, painted by the UNet with CFG, some as somebody else: what it sees
        there bears its own mistakes, as it does while pictures are painted (DREAM, arXiv 2312.00210, trains on such).

        The noise that it is to predict is what leads from there to the true latents. draws: [3, B], 0 to 1.
        """
        denoiser = self._denoiser
        tokens = self.network.tokens(batch)
        swapped = (draws[2] < _SWAPPED).view(-1, 1, 1)
        tokens = torch.where(swapped, tokens.roll(1, 0), tokens)[rows]
        cfg = (_CFG[0] + (_CFG[1] - _CFG[0]) * draws[1][rows]).view(-1, 1, 1, 1)
        guided = self._guided(_rows(batch, rows), tokens, cfg)
        timesteps, noise = batch.timesteps.clone(), batch.noise.clone()
        timesteps[rows] = (timesteps * (_ON[0] + (_ON[1] - _ON[0]) * draws[0])).to(timesteps.dtype)[rows]
        snr = denoiser.signal_to_noise
        grown = (snr(timesteps[rows]) / snr(batch.timesteps[rows])).sqrt().view(-1, 1, 1, 1)
        noise[rows] = guided + grown * (batch.noise[rows] - guided)
        boosted = while_boosted(timesteps, denoiser.timesteps)
        regions = tuple(region if early else None for region, early in zip(batch.regions, boosted, strict=True))
        return replace(batch, noise=noise, timesteps=timesteps, regions=regions)

    def _guided(self, batch: PlacedBatch, tokens: Tensor, cfg: Tensor) -> Tensor:
        """The noise that the UNet sees in a batch, with CFG [B, 1, 1, 1], like ``batch.noise``."""
        denoiser, adapter = self._denoiser, self.network.adapter
        settings = SaaSettings(threshold=self._config.threshold)
        nobody = tokens_of_nobody(adapter, self._encoders).expand(len(tokens), -1, -1)
        layouts = boosted_layouts(batch.regions * 2, settings.layout_boost, tokens.device)
        attention = adapter.patches(torch.cat((tokens, nobody)), settings, text_attention, layouts)
        nothing = self._encoders.contexts([""]).expand(len(tokens), -1, -1)
        seen = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
        both = denoiser(
            seen.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), torch.cat((batch.context, nothing)), attention
        )
        positive, negative = both.chunk(2)
        return negative + cfg * (positive - negative)


def keep_self_attention(unet: nn.Module, adapter: TrainableAdapter) -> None:
    """From now on neither the self-attention of a UNet trains, nor the low-rank updates of it.

    One face at a time teaches it that all of a picture belongs to one person; people in one picture then blend.
    """
    for layer in adapter.layers:
        if not layer.is_cross:
            unet.get_submodule(layer.path).requires_grad_(False)
            adapter.updates.layers[str(layer.index)].requires_grad_(False)


def _rows(batch: AnchorBatch, rows: Tensor) -> PlacedBatch:
    """Some of a batch, without the edits."""
    assert isinstance(batch, PlacedBatch)
    names = [field.name for field in fields(AnchorBatch)]
    tensors = {name: getattr(batch, name)[rows] for name in names}
    return PlacedBatch(**tensors, regions=tuple(batch.regions[row] for row in rows.tolist()))


def _of_likeness(batch: AnchorBatch) -> LikenessBatch:
    assert isinstance(batch, LikenessBatch)
    return batch
