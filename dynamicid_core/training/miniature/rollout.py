"""Roll-outs: the UNet samples on from some pictures before it learns from them, so that they bear its own mistakes, as
they do while it paints (DREAM, arXiv 2312.00210, trains on such).
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
_MIN_TIMESTEP = 200  # of 1000: with less noise there is nothing left to sample
_END = 0.3, 0.97  # fractions of its timestep to which a picture is sampled
_LONG = 0.6  # share of the batches whose roll-outs start from much noise, as far as the others but in more steps
_LONG_START = 0.6, 0.97  # fractions of the timesteps where these start
_LONG_STEPS = 3  # of these; the others take one
_CFG = 1.0, 4.0
_SWAPPED = 0.25  # share of the pictures that are sampled with another person's tokens
Batch = TypeVar("Batch", bound=PlacedBatch)


@dataclass(frozen=True, eq=False)
class _Plan:
    """rows: [n], those of a batch to roll out. tokens: [n, T, D]. cfg: [n, 1, 1, 1]. ends: [n], the timesteps to reach.
    steps: in how many steps.
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
        """The batch with some pictures sampled to less noise, with CFG, and which ones, [B]. tokens: [B, T, D], of the
        people; some pictures are sampled with another person's.

        A rolled-out picture's target noise is that which leads from there to the true latents.
        """
        count, device = len(tokens), tokens.device
        draws = torch.rand(5, count, generator=generator).to(device)
        long = float(torch.rand(1, generator=generator)) < _LONG
        rolled_out = draws[0] < _ROLLED_OUT
        if long:
            batch = replace(batch, timesteps=torch.where(rolled_out, self._starts(draws[1]), batch.timesteps))
        else:
            rolled_out &= batch.timesteps >= _MIN_TIMESTEP / 1000 * self._denoiser.timesteps
        rows = rolled_out.nonzero().flatten()
        if len(rows):
            swapped = (draws[2] < _SWAPPED).view(-1, 1, 1)
            plan = _Plan(
                rows,
                torch.where(swapped, tokens.roll(1, 0), tokens)[rows],
                _between(_CFG, draws[3][rows]).view(-1, 1, 1, 1),
                batch.timesteps[rows] * _between(_END, draws[4][rows]),
                _LONG_STEPS if long else 1,
            )
            batch = self._roll_out(batch, plan)
        return batch, rolled_out

    def _starts(self, draws: Tensor) -> Tensor:
        return (self._denoiser.timesteps * _between(_LONG_START, draws)).long()

    def _roll_out(self, batch: Batch, plan: _Plan) -> Batch:
        starts = batch.timesteps[plan.rows]
        for step in range(plan.steps):
            to = starts + (plan.ends - starts) * ((step + 1) / plan.steps)
            batch = self._step(batch, plan, to.long())
        return batch

    def _step(self, batch: Batch, plan: _Plan, to: Tensor) -> Batch:
        """The batch with the plan's rows one sampling step further, at timesteps ``to``."""
        rows, denoiser = plan.rows, self._denoiser
        guided = self.guided(rows_of(batch, rows), plan.tokens, plan.cfg)
        timesteps, noise = batch.timesteps.index_copy(0, rows, to), batch.noise.clone()
        snr = denoiser.signal_to_noise
        ratio = (snr(to) / snr(batch.timesteps[rows])).sqrt().view(-1, 1, 1, 1)
        noise[rows] = guided + ratio * (batch.noise[rows] - guided)
        boosted = boost_is_active(timesteps, denoiser.timesteps)
        regions = tuple(region if early else None for region, early in zip(batch.regions, boosted, strict=True))
        return replace(batch, noise=noise, timesteps=timesteps, regions=regions)

    def guided(self, batch: PlacedBatch, tokens: Tensor, cfg: Tensor) -> Tensor:
        """The noise that the UNet predicts for a batch, with CFG [B, 1, 1, 1]; like ``batch.noise``."""
        denoiser, adapter, settings = self._denoiser, self._adapter, self._settings
        unconditional = unconditional_tokens(adapter, self._encoders).expand(len(tokens), -1, -1)
        layouts = boosted_layouts(batch.regions * 2, settings.layout_boost, tokens.device)
        attention = adapter.patches(torch.cat((tokens, unconditional)), settings, text_attention, layouts)
        no_text = self._encoders.contexts([""]).expand(len(tokens), -1, -1)
        noisy = denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        both = denoiser(
            noisy.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), torch.cat((batch.context, no_text)), attention
        )
        positive, negative = both.chunk(2)
        return negative + cfg * (positive - negative)


def rows_of(batch: PlacedBatch, rows: Tensor) -> PlacedBatch:
    """The given rows [n] of a batch."""
    names = [field.name for field in fields(AnchorBatch)]
    tensors = {name: getattr(batch, name)[rows] for name in names}
    return PlacedBatch(**tensors, regions=tuple(batch.regions[row] for row in rows.tolist()))


def _between(ends: tuple[float, float], draws: Tensor) -> Tensor:
    low, high = ends
    return low + (high - low) * draws
