"""What the last sampling runs asked of the model, so that it can be asked again."""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOOKING = "dynamicid_looking"
"""Among the transformer_options of a call that only looks, which is no moment of its own."""
TOLD = ("cond_or_uncond", "uuids", "sigmas", "sample_sigmas")
"""What other packs read of the transformer_options."""
RUNS_KEPT = 4
"""So many runs can be asked again. What they asked lies in the device's memory."""
_RUNS_KNOWN = 64
"""So many runs are known by what came out."""
_VALUES_KEPT = 65536
"""So many values of what came out tell one run from another."""


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
    """One application's part in a sampling.

    sampling: what the runs of all applications in one sampling have in common. moments: the last step of the run in
    which the identity acted, a moment for each call of that step; none if it never did, or if they were dropped.
    """

    sampling: Any = None
    moments: tuple[Moment, ...] = ()
    are_dropped: bool = False
    _shape: tuple[int, ...] = ()
    _values: Tensor | None = None

    def gave(self, latent: Tensor) -> None:
        """What came out."""
        self._shape, self._values = tuple(latent.shape), _some_values(latent)

    def is_behind(self, latent: Tensor) -> bool:
        """Whether this latent is what came out."""
        if self._values is None or self._shape != tuple(latent.shape):
            return False
        return torch.allclose(self._values, _some_values(latent), rtol=1e-3, atol=1e-3)

    def drop_moments(self) -> None:
        """Frees their memory."""
        self.are_dropped, self.moments = self.are_dropped or bool(self.moments), ()


class SamplingRuns:
    """The last runs of one application."""

    def __init__(self) -> None:
        self._runs: deque[SamplingRun] = deque(maxlen=_RUNS_KNOWN)
        self._current: SamplingRun | None = None

    @contextmanager
    def sampling(self, noise: Tensor) -> Iterator[SamplingRun]:
        """A new run, which is kept if it comes to its end."""
        # All applications of a sampling are given the same noise. It is not kept, only told from that of others.
        run, outer = SamplingRun(weakref.ref(noise)), self._current
        self._current = run
        try:
            yield run
        finally:
            self._current = outer
        self._keep(run)

    def _keep(self, run: SamplingRun) -> None:
        self._runs.append(run)
        if len(self._runs) > RUNS_KEPT:
            self._runs[-1 - RUNS_KEPT].drop_moments()

    def note(self, moment: Moment) -> None:
        """Prompts that do not fit into one call, such as those for areas of several sizes, are several at one step."""
        run = self._current or self.last()
        if run is None:  # a pack asks without sampling
            run = SamplingRun()
            self._keep(run)
        step = moment.options.get("sigmas")  # one tensor for all calls of a step
        together = step is not None and run.moments and run.moments[-1].options.get("sigmas") is step
        run.moments = (*run.moments, moment) if together else (moment,)

    def last(self) -> SamplingRun | None:
        """The last run."""
        return self._runs[-1] if self._runs else None

    def behind(self, latent: Tensor) -> SamplingRun | None:
        """The run that this latent came out of."""
        return next((run for run in reversed(self._runs) if run.is_behind(latent)), None)

    def of(self, sampling: Any) -> SamplingRun | None:
        """The run that was part of that sampling."""
        return next((run for run in reversed(self._runs) if run.sampling is sampling), None)

    def samplings(self) -> list[Any]:
        """All that are known, the last one first."""
        return [run.sampling for run in reversed(self._runs)]


def runs_behind(latent: Tensor | None, applications: Sequence[SamplingRuns]) -> list[SamplingRun]:
    """Each application's run of the sampling that this latent came out of.

    For None, and for a latent that was changed since, that is the last sampling in which all of them took part. The run
    of an application that took no part is empty.
    """
    found = [] if latent is None else [run for runs in applications if (run := runs.behind(latent)) is not None]
    shared = [run.sampling for run in found] or [
        sampling for sampling in applications[0].samplings() if all(runs.of(sampling) for runs in applications)
    ]
    chosen = [runs.of(shared[0]) if shared else runs.last() for runs in applications]
    return [run or SamplingRun() for run in chosen]


def _some_values(latent: Tensor) -> Tensor:
    """Enough of a latent to know it again: of large ones, as those of a film, not all values."""
    values = latent.detach().flatten()
    step = len(values) // _VALUES_KEPT | 1  # an odd one, so that it does not keep to a few columns
    return values[::step].float().cpu().clone()
