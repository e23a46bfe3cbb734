"""Single steps of a model through ComfyUI's own guider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from saa_variants import Variant
from torch import Tensor

CFG = 5.0
BOOSTED, PLAIN = 900, 500
"""Timesteps: the layout boost is active at the first (before 24 % of the schedule), but not at the second."""


@dataclass
class Steps:
    """A sampler that calls the model at given timesteps, each call through ``around``."""

    timesteps: list[int]
    around: Callable[[Callable[[], Tensor]], Any]
    results: list[Any] = field(default_factory=list)

    def sample(self, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *_: Any) -> Tensor:
        """Called by the host in place of its own samplers."""
        for timestep in self.timesteps:
            sigma = guider.inner_model.model_sampling.sigma(torch.tensor([timestep])).to(noise)
            x = noise * (sigma**2 + 1) ** 0.5

            def step(x: Tensor = x, sigma: Tensor = sigma) -> Tensor:
                return guider(x, sigma.expand(len(x)), **extra_args)

            self.results.append(self.around(step))
        return noise

    def max_denoise(self, *_: Any) -> bool:
        """Called by the host."""
        return True


def sample(variant: Variant, size: int, steps: Steps) -> list[Any]:
    """One sampling run through the host's own guider."""
    latent = torch.zeros(1, 4, size // 8, size // 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    guider = comfy.samplers.CFGGuider(variant.model)
    guider.set_conds(variant.positive, variant.negative)
    guider.set_cfg(CFG)
    guider.sample(noise, latent, steps, torch.tensor([1.0, 0.0]), disable_pbar=True)
    return steps.results
