"""Activation maps of a sampled model: what the gate let through, for each person."""

from collections.abc import Sequence
from contextlib import ExitStack

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .. import saa
from ..adapter import AttentionLayer
from ..errors import InputError
from ..regions import LATENT_CELL
from .identity_patch import IdentityPatch
from .model_calls import KEPT_RUNS, REPLAYING, ModelCall, SamplingRun, find_runs
from .rows import POSITIVE

GROUPS = {"input": "down", "middle": "middle", "output": "up"}
"""UNet section in ComfyUI -> its usual name."""


def activation_maps(model: ModelPatcher, pictures: int, latent: Tensor | None = None) -> dict[str, Tensor]:
    """How much each place takes of each person: group -> [pictures, people, H, W], 0 to 1, one value per latent cell.

    The groups are "all" and the values of GROUPS. Replays the model calls of the last step in which the identity acted
    and records their gates, so that sampling itself is not slowed. The people of several applications are concatenated.
    latent: the result of one of the last samplings, which it identifies; by default the last one. Raises InputError if
    the model has no DynamicID, the identity did not act in that sampling, it was of other pictures, or too many came
    after it.
    """
    patches = _patches(model)
    if not patches:
        raise InputError(
            "DynamicID does not act in this model. Connect the model output of Apply DynamicID; its weight must be "
            "more than 0."
        )
    runs = find_runs(latent, [patch.runs for patch in patches])
    if any(run.calls_dropped for run in runs):
        raise InputError(
            f"The map of this sampling is no longer kept: the model has been sampled {KEPT_RUNS} times or more since. "
            "Sample the pictures in one batch instead of one after the other, or give each sampler an Apply DynamicID "
            "of its own. For the map of an older picture, sample it again."
        )
    acted = {patch: _first_calls(run.calls, patch, runs) for patch, run in zip(patches, runs, strict=True) if run.calls}
    if not acted:
        raise InputError(
            "This model has not been sampled yet, or its faces never acted. Connect the same model to the sampler and "
            "the sampler's latent here, so that sampling comes first, and check start_percent and end_percent. If the "
            "sampler did not run this time, change its seed."
        )
    recorders: dict[IdentityPatch, list[_Recorder]] = {patch: [] for patch in acted}
    for call in dict.fromkeys(call for calls in acted.values() for call in calls):
        _check_pictures(call, pictures, None if latent is None else (latent.shape[-2], latent.shape[-1]))
        with ExitStack() as observers:
            for patch in (patch for patch, calls in acted.items() if call in calls):
                recorders[patch].append(_Recorder(call, patch))
                observers.enter_context(patch.observed(recorders[patch][-1].see, call.latent))
            _replay(model, call)
    return _concatenate_people([_average_rows(of_one, pictures) for of_one in recorders.values()])


def _first_calls(calls: Sequence[ModelCall], patch: IdentityPatch, runs: Sequence[SamplingRun]) -> list[ModelCall]:
    """A patch's calls as the first application around it saw them, with the conditioning of all behind it."""
    seen = [call for run in runs for call in run.calls]
    return [next(one for one in seen if one.x is call.x and patch.key in one.conds) for call in calls]


class _Recorder:
    """Records what one application's gates let through in one call, in the rows of the positive prompt."""

    def __init__(self, call: ModelCall, patch: IdentityPatch) -> None:
        self._patch, self._latent = patch, call.latent
        self._positive = [i for i, row in enumerate(call.conds[patch.key]) if row.role == POSITIVE]
        self._areas = [call.conds[patch.key][i].area or (*call.latent, 0, 0) for i in self._positive]
        self._maps: list[tuple[str, Tensor]] = []

    def see(
        self,
        layer: AttentionLayer,
        query: Tensor,
        identity: saa.IdentityTokens,
        layout: saa.Layout | None,
        grid: tuple[int, int],
        order: tuple[int, ...],
    ) -> None:
        """An observer, see ``IdentityPatch.observed``. order: which of the call's rows each row of the layer is."""
        gates = saa.person_gates(query, identity, self._patch.settings.threshold, layout, self._patch.counts)
        seen = gates[[order.index(row) for row in self._positive]]  # rows of coupled prompts are left out
        self._maps.append((GROUPS[layer.block[0]], seen.unflatten(-1, grid).cpu()))

    def groups(self) -> dict[str, Tensor]:
        """Means over the layers of each group, [rows, people, H, W], where each row's area is in the latent."""
        means: dict[str, Tensor] = {}
        for group in ("all", *GROUPS.values()):
            maps = [self._placed(one) for of, one in self._maps if group in ("all", of)]
            if maps:
                means[group] = torch.stack(maps).mean(dim=0)
        return means

    def shown(self) -> Tensor:
        """The part of the latent that each row shows: 1 there, 0 elsewhere; [rows, 1, H, W]."""
        return self._placed(torch.ones(len(self._areas), 1, 1, 1))

    def _placed(self, maps: Tensor) -> Tensor:
        whole = maps.new_zeros(*maps.shape[:2], *self._latent)
        for row, (height, width, top, left) in enumerate(self._areas):
            area = F.interpolate(maps[row : row + 1], size=(height, width), mode="bilinear")
            whole[row, :, top : top + height, left : left + width] = area[0]
        return whole


def _check_pictures(call: ModelCall, pictures: int, latent: tuple[int, int] | None) -> None:
    if call.pictures is not None and call.pictures != pictures:
        raise _count_error(call.pictures, pictures)
    if latent is not None and latent != call.latent:
        height, width = (side * LATENT_CELL for side in latent)
        last_height, last_width = (side * LATENT_CELL for side in call.latent)
        raise InputError(
            f"This model was last sampled at {last_width} x {last_height} pixels, after the connected latent of "
            f"{width} x {height}. Connect the latent and the picture of its last sampler, or give each sampler an "
            "Apply DynamicID of its own."
        )


def _count_error(last: int, pictures: int) -> InputError:
    return InputError(
        f"The model was last sampled with {last} picture{'' if last == 1 else 's'}, not with {pictures}. Connect the "
        "latent of that sampler, and the image decoded from it."
    )


def _average_rows(recorders: Sequence[_Recorder], pictures: int) -> dict[str, Tensor]:
    """Averages the rows of each picture, one for each positive prompt, at each place over those that show it."""
    shown = torch.stack([_sum_by_picture(recorder.shown(), pictures) for recorder in recorders]).sum(dim=0)
    seen = [recorder.groups() for recorder in recorders]
    return {
        group: torch.stack([_sum_by_picture(groups[group], pictures) for groups in seen]).sum(dim=0)
        / shown.clamp(min=1)
        for group in seen[0]
    }


def _sum_by_picture(rows: Tensor, pictures: int) -> Tensor:
    if len(rows) % pictures != 0:
        raise _count_error(len(rows), pictures)
    return rows.unflatten(0, (-1, pictures)).sum(dim=0)


def _concatenate_people(applications: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenates the people of all applications, on the finest of their grids."""
    height, width = max((groups["all"].shape[-2:] for groups in applications), key=lambda size: size[0] * size[1])
    return {
        group: torch.cat(
            [F.interpolate(groups[group], size=(height, width), mode="bilinear") for groups in applications], dim=1
        )
        for group in applications[0]
    }


def _patches(model: ModelPatcher) -> list[IdentityPatch]:
    wrappers = model.wrappers.get(WrappersMP.APPLY_MODEL, {})
    found = (getattr(wrapper, "__self__", None) for keyed in wrappers.values() for wrapper in keyed)
    return [patch for patch in found if isinstance(patch, IdentityPatch)]


def _replay(model: ModelPatcher, call: ModelCall) -> None:
    """Repeats a call without the wrappers of other packs: one that caches would answer in the model's place."""
    ours = {
        key: mine
        for key, wrappers in model.wrappers.get(WrappersMP.APPLY_MODEL, {}).items()
        if (mine := [one for one in wrappers if isinstance(getattr(one, "__self__", None), IdentityPatch)])
    }
    options = {**model.model_options["transformer_options"], "sigmas": call.sigma, **call.options, REPLAYING: True}
    options["wrappers"] = {WrappersMP.APPLY_MODEL: ours}
    needed = model.model.memory_required(list(call.x.shape))
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()], memory_required=needed)
    device = model.load_device
    with torch.no_grad():
        model.model.apply_model(
            call.x.to(device),
            call.sigma.to(device),
            call.c_concat,
            call.c_crossattn,
            None,
            options,
            **call.conds,
        )
