"""Records the model calls of the last sampling runs, so that they can be replayed."""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

REPLAYING = "dynamicid_looking"
"""Key in the transformer_options of a replayed call, which is not recorded."""
REPLAYED_OPTIONS = ("cond_or_uncond", "uuids", "sigmas", "sample_sigmas")
"""The transformer_options that other packs read."""
KEPT_RUNS = 4
"""How many runs can be replayed. Their calls are held in the device's memory."""
_MAX_KNOWN_RUNS = 64
"""How many runs are known by their result."""
_SAMPLED_VALUES = 65536
"""How many values of a result identify a run."""


@dataclass(frozen=True, eq=False)
class ModelCall:
    """The arguments of one model call in which the identity acted, enough to replay it.

    latent: height and width of the whole latent, of which x may be an area. pictures: how many were sampled, None if
    unknown. options: REPLAYED_OPTIONS of the host's transformer_options.
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

    sampling: identifies the sampling, for the runs of all applications. calls: those of the last step in which the
    identity acted; empty if it never did, or if they were dropped.
    """

    sampling: Any = None
    calls: tuple[ModelCall, ...] = ()
    calls_dropped: bool = False
    _shape: tuple[int, ...] = ()
    _values: Tensor | None = None

    def set_result(self, latent: Tensor) -> None:
        """Remembers the result."""
        self._shape, self._values = tuple(latent.shape), _sample_values(latent)

    def produced(self, latent: Tensor) -> bool:
        """Whether this latent is the result of the run."""
        if self._values is None or self._shape != tuple(latent.shape):
            return False
        return torch.allclose(self._values, _sample_values(latent), rtol=1e-3, atol=1e-3)

    def drop_calls(self) -> None:
        """Frees their memory."""
        self.calls_dropped, self.calls = self.calls_dropped or bool(self.calls), ()


class SamplingRuns:
    """The last runs of one application."""

    def __init__(self) -> None:
        self._runs: deque[SamplingRun] = deque(maxlen=_MAX_KNOWN_RUNS)
        self._current: SamplingRun | None = None

    @contextmanager
    def sampling(self, noise: Tensor) -> Iterator[SamplingRun]:
        """A new run, which is kept if it completes."""
        # All applications of a sampling get the same noise tensor. It is not kept, it only identifies the sampling.
        run, outer = SamplingRun(weakref.ref(noise)), self._current
        self._current = run
        try:
            yield run
        finally:
            self._current = outer
        self._keep(run)

    def _keep(self, run: SamplingRun) -> None:
        self._runs.append(run)
        if len(self._runs) > KEPT_RUNS:
            self._runs[-1 - KEPT_RUNS].drop_calls()

    def record(self, call: ModelCall) -> None:
        """Records a call. A step has several if its prompts do not fit into one, such as areas of several sizes."""
        run = self._current or self.last()
        if run is None:  # a pack calls the model without sampling
            run = SamplingRun()
            self._keep(run)
        step = call.options.get("sigmas")  # one tensor for all calls of a step
        together = step is not None and run.calls and run.calls[-1].options.get("sigmas") is step
        run.calls = (*run.calls, call) if together else (call,)

    def last(self) -> SamplingRun | None:
        """The last run."""
        return self._runs[-1] if self._runs else None

    def find_by_result(self, latent: Tensor) -> SamplingRun | None:
        """The run with this result."""
        return next((run for run in reversed(self._runs) if run.produced(latent)), None)

    def in_sampling(self, sampling: Any) -> SamplingRun | None:
        """The run in that sampling."""
        return next((run for run in reversed(self._runs) if run.sampling is sampling), None)

    def samplings(self) -> list[Any]:
        """All known samplings, the last one first."""
        return [run.sampling for run in reversed(self._runs)]


def find_runs(latent: Tensor | None, applications: Sequence[SamplingRuns]) -> list[SamplingRun]:
    """Each application's run of the sampling with this result.

    For None, and for a latent that was changed since, it is the last sampling in which all of them took part. The run
    of an application that took no part is empty.
    """
    found = [] if latent is None else [run for runs in applications if (run := runs.find_by_result(latent)) is not None]
    shared = [run.sampling for run in found] or [
        sampling for sampling in applications[0].samplings() if all(runs.in_sampling(sampling) for runs in applications)
    ]
    chosen = [runs.in_sampling(shared[0]) if shared else runs.last() for runs in applications]
    return [run or SamplingRun() for run in chosen]


def _sample_values(latent: Tensor) -> Tensor:
    """Enough values of a latent to recognise it: not all of those of a large one, such as a video's."""
    values = latent.detach().flatten()
    step = len(values) // _SAMPLED_VALUES | 1  # odd, so that it does not stay in a few columns
    return values[::step].float().cpu().clone()
