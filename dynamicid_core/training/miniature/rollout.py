"""Pictures that the UNet goes on with before it learns from them: what it sees there bears its own mistakes, as it does
while it paints (DREAM, arXiv 2312.00210, trains on such).
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from ...comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ...comfy_host.identity_patch import text_attention
from ...saa import SaaSettings
from ..anchoring import AnchorBatch
from ..networks import TrainableAdapter
from ..stages import unconditional_tokens
from .together import PlacedBatch, boost_is_active, boosted_layouts

_ROLLED_OUT = 0.5  # share of the pictures
_LEAST = 200  # of 1000 timesteps: with less noise there is nothing left to go
_ON = 0.3, 0.97  # to which part of its timestep a picture goes on
_FAR = 0.6  # share of the batches whose pictures go on from much noise, as far as the others but in more steps
_FROM = 0.6, 0.97  # of the timesteps, where these set out
_STEPS = 3  # of these; the others go one
_CFG = 1.0, 4.0
_SWAPPED = 0.25  # share of the pictures that go on as somebody else
Batch = TypeVar("Batch", bound=PlacedBatch)


@dataclass(frozen=True, eq=False)
class _Plan:
    """rows: [n] of a batch that go on. tokens: [n, T, D], of whom. cfg: [n, 1, 1, 1]. ends: [n], timesteps that they
    reach in so many steps.
    """

    rows: Tensor
    tokens: Tensor
    cfg: Tensor
    ends: Tensor
    steps: int


class Rollout:
    """Sampling steps of UNet and adapter, as the sampler takes them."""

    def __init__(
        self, denoiser: DenoisingModel, encoders: FrozenEncoders, adapter: TrainableAdapter, settings: SaaSettings
    ) -> None:
        self._denoiser, self._encoders, self._adapter, self._settings = denoiser, encoders, adapter, settings

    @torch.no_grad()
    def take(self, batch: Batch, tokens: Tensor, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Some pictures of a batch with less noise, painted with CFG, and which ones, [B]. tokens: [B, T, D], of the
        people; some go on as somebody else.

        The noise that a picture that has gone on is to be freed from is what leads from there to the true latents.
        """
        count, device = len(tokens), tokens.device
        draws = torch.rand(5, count, generator=generator).to(device)
        far = float(torch.rand(1, generator=generator)) < _FAR
        going = draws[0] < _ROLLED_OUT
        if far:
            batch = replace(batch, timesteps=torch.where(going, self._starts(draws[1]), batch.timesteps))
        else:
            going &= batch.timesteps >= _LEAST / 1000 * self._denoiser.timesteps
        rows = going.nonzero().flatten()
        if len(rows):
            swapped = (draws[2] < _SWAPPED).view(-1, 1, 1)
            way = _Plan(
                rows,
                torch.where(swapped, tokens.roll(1, 0), tokens)[rows],
                _between(_CFG, draws[3][rows]).view(-1, 1, 1, 1),
                batch.timesteps[rows] * _between(_ON, draws[4][rows]),
                _STEPS if far else 1,
            )
            batch = self._roll_out(batch, way)
        return batch, going

    def _starts(self, draws: Tensor) -> Tensor:
        return (self._denoiser.timesteps * _between(_FROM, draws)).long()

    def _roll_out(self, batch: Batch, way: _Plan) -> Batch:
        starts = batch.timesteps[way.rows]
        for step in range(way.steps):
            to = starts + (way.ends - starts) * ((step + 1) / way.steps)
            batch = self._step(batch, way, to.long())
        return batch

    def _step(self, batch: Batch, way: _Plan, to: Tensor) -> Batch:
        """Rows of the batch a sampling step later, at timesteps ``to``."""
        rows, denoiser = way.rows, self._denoiser
        guided = self.guided(rows_of(batch, rows), way.tokens, way.cfg)
        timesteps, noise = batch.timesteps.index_copy(0, rows, to), batch.noise.clone()
        snr = denoiser.signal_to_noise
        grown = (snr(to) / snr(batch.timesteps[rows])).sqrt().view(-1, 1, 1, 1)
        noise[rows] = guided + grown * (batch.noise[rows] - guided)
        boosted = boost_is_active(timesteps, denoiser.timesteps)
        regions = tuple(region if early else None for region, early in zip(batch.regions, boosted, strict=True))
        return replace(batch, noise=noise, timesteps=timesteps, regions=regions)

    def guided(self, batch: PlacedBatch, tokens: Tensor, cfg: Tensor) -> Tensor:
        """The noise that the UNet sees in a batch, with CFG [B, 1, 1, 1], like ``batch.noise``."""
        denoiser, adapter, settings = self._denoiser, self._adapter, self._settings
        nobody = unconditional_tokens(adapter, self._encoders).expand(len(tokens), -1, -1)
        layouts = boosted_layouts(batch.regions * 2, settings.layout_boost, tokens.device)
        attention = adapter.patches(torch.cat((tokens, nobody)), settings, text_attention, layouts)
        nothing = self._encoders.contexts([""]).expand(len(tokens), -1, -1)
        seen = denoiser.noisy(batch.latents, batch.noise, batch.timesteps)
        both = denoiser(
            seen.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), torch.cat((batch.context, nothing)), attention
        )
        positive, negative = both.chunk(2)
        return negative + cfg * (positive - negative)


def rows_of(batch: PlacedBatch, rows: Tensor) -> PlacedBatch:
    """Some of a batch. rows: [n]."""
    names = [field.name for field in fields(AnchorBatch)]
    tensors = {name: getattr(batch, name)[rows] for name in names}
    return PlacedBatch(**tensors, regions=tuple(batch.regions[row] for row in rows.tolist()))


def _between(ends: tuple[float, float], draws: Tensor) -> Tensor:
    low, high = ends
    return low + (high - low) * draws
