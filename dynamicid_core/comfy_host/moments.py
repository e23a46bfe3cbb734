"""What the last sampling runs asked of the model, so that it can be asked again."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOOKING = "dynamicid_looking"
"""Among the transformer_options of a call that only looks, which is no moment of its own."""
TOLD = ("cond_or_uncond", "uuids", "sigmas", "sample_sigmas")
"""What other packs read of the transformer_options."""
_RUNS_KEPT = 4


@dataclass(frozen=True, eq=False)
class Moment:
    """What the model was asked while the identity acted; enough to ask it again.

    latent: height and width of the whole latent, of which x may be an area. pictures: how many were sampled, None if
    that is not known. options: the TOLD ones of the host's transformer_options.
    """

    latent: tuple[int, int]
    pictures: int | None
    options: dict[str, Any]
    x: Tensor
    sigma: Tensor
    c_concat: Tensor | None
    c_crossattn: Tensor | None
    conds: dict[str, Any]


@dataclass(eq=False)
class SamplingRun:
    """latent: what came out, None until then. moments: the last step of the run in which the identity acted, a moment
    for each call of that step; none if it never did.
    """

    latent: Tensor | None = None
    moments: tuple[Moment, ...] = ()


class SamplingRuns:
    """The last runs of one application."""

    def __init__(self) -> None:
        self._runs: deque[SamplingRun] = deque(maxlen=_RUNS_KEPT)

    def begin(self) -> SamplingRun:
        """A new run, the oldest making room for it."""
        run = SamplingRun()
        self._runs.append(run)
        return run

    def forget(self, run: SamplingRun) -> None:
        """Leaves out a run that came to nothing."""
        if run in self._runs:
            self._runs.remove(run)

    def note(self, moment: Moment) -> None:
        """Prompts that do not fit into one call, such as those for areas of several sizes, are several at one step."""
        step = moment.options.get("sigmas")  # one tensor for all calls of a step
        run = self._runs[-1] if self._runs else self.begin()  # there is none when a pack asks without sampling
        together = step is not None and run.moments and run.moments[-1].options.get("sigmas") is step
        run.moments = (*run.moments, moment) if together else (moment,)

    def behind(self, latent: Tensor | None) -> SamplingRun:
        """The run that this latent came out of; the last one for None, and for a latent that was changed since."""
        for run in reversed(self._runs):
            if latent is not None and run.latent is not None and run.latent.shape == latent.shape:
                came_out, given = (one.detach().float().cpu() for one in (run.latent, latent))
                if torch.allclose(came_out, given, rtol=1e-3, atol=1e-3):
                    return run
        return self._runs[-1] if self._runs else SamplingRun()
