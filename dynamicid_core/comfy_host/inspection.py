"""Looking into a sampled model: what the gate let through, and for whom."""

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
from .moments import LOOKING, RUNS_KEPT, Moment, SamplingRun, runs_behind
from .rows import POSITIVE

GROUPS = {"input": "down", "middle": "middle", "output": "up"}
"""UNet sections, in the words of the field."""


def activation_maps(model: ModelPatcher, pictures: int, latent: Tensor | None = None) -> dict[str, Tensor]:
    """How much each place takes of each person: group -> [pictures, people, H, W], 0 to 1, a value a latent cell.

    The groups are "all" and the values of GROUPS. Asks the model once more what it was asked in the last step in which
    the identity acted, and looks at the gates of those calls, so a sampling run itself is not slowed. People of several
    applications follow each other. latent: what came out, by which one of the last samplings is known; else it is the
    last one. Raises InputError when the model has no DynamicID, the identity did not act in that sampling, it was one
    of other pictures, or too many came after it.
    """
    patches = _patches(model)
    if not patches:
        raise InputError(
            "DynamicID does not act in this model. Connect the model output of Apply DynamicID; its weight must be "
            "more than 0."
        )
    runs = runs_behind(latent, [patch.runs for patch in patches])
    if any(run.are_dropped for run in runs):
        raise InputError(
            f"The map of this sampling is no longer kept: the model has been sampled {RUNS_KEPT} times or more since. "
            "Sample the pictures in one batch instead of one after the other, or give each sampler an Apply DynamicID "
            "of its own."
        )
    acted = {
        patch: _as_seen_first(run.moments, patch, runs) for patch, run in zip(patches, runs, strict=True) if run.moments
    }
    if not acted:
        raise InputError(
            "This model has not been sampled yet, or its faces never acted. Connect the same model to the sampler and "
            "the sampler's latent here, so that sampling comes first, and check start_percent and end_percent."
        )
    looks: dict[IdentityPatch, list[_Look]] = {patch: [] for patch in acted}
    for moment in dict.fromkeys(moment for moments in acted.values() for moment in moments):
        _check_pictures(moment, pictures, None if latent is None else (latent.shape[-2], latent.shape[-1]))
        with ExitStack() as observers:
            for patch in (patch for patch, moments in acted.items() if moment in moments):
                looks[patch].append(_Look(moment, patch))
                observers.enter_context(patch.observed(looks[patch][-1].see, moment.latent))
            _ask_again(model, moment)
    return _side_by_side([_together(of_one, pictures) for of_one in looks.values()])


def _as_seen_first(moments: Sequence[Moment], patch: IdentityPatch, runs: Sequence[SamplingRun]) -> list[Moment]:
    """A patch's moments as the first application saw them that was asked with it: it sees the conditioning of all
    behind it.
    """
    seen = [moment for run in runs for moment in run.moments]
    return [next(one for one in seen if one.x is moment.x and patch.key in one.conds) for moment in moments]


class _Look:
    """What one application's gates let through in one call, of the rows that paint what is asked for."""

    def __init__(self, moment: Moment, patch: IdentityPatch) -> None:
        self._patch, self._latent = patch, moment.latent
        self._positive = [i for i, row in enumerate(moment.conds[patch.key]) if row.role == POSITIVE]
        self._areas = [moment.conds[patch.key][i].area or (*moment.latent, 0, 0) for i in self._positive]
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
        seen = gates[[order.index(row) for row in self._positive]]  # the text that a row is coupled with does not count
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
        """Which part of the latent each row shows: 1 there, 0 elsewhere; [rows, 1, H, W]."""
        return self._placed(torch.ones(len(self._areas), 1, 1, 1))

    def _placed(self, maps: Tensor) -> Tensor:
        whole = maps.new_zeros(*maps.shape[:2], *self._latent)
        for row, (height, width, top, left) in enumerate(self._areas):
            area = F.interpolate(maps[row : row + 1], size=(height, width), mode="bilinear")
            whole[row, :, top : top + height, left : left + width] = area[0]
        return whole


def _check_pictures(moment: Moment, pictures: int, latent: tuple[int, int] | None) -> None:
    if moment.pictures is not None and moment.pictures != pictures:
        raise _sampled_with(moment.pictures, pictures)
    if latent is not None and latent != moment.latent:
        height, width = (side * LATENT_CELL for side in latent)
        last_height, last_width = (side * LATENT_CELL for side in moment.latent)
        raise InputError(
            f"This model was last sampled at {last_width} x {last_height} pixels, after the connected latent of "
            f"{width} x {height}. Connect the latent and the picture of its last sampler, or give each sampler an "
            "Apply DynamicID of its own."
        )


def _sampled_with(last: int, pictures: int) -> InputError:
    return InputError(
        f"The model was last sampled with {last} picture{'' if last == 1 else 's'}, not with {pictures}. Connect the "
        "latent of that sampler, and the image decoded from it."
    )


def _together(looks: Sequence[_Look], pictures: int) -> dict[str, Tensor]:
    """Several positive prompts of one picture are several rows: the mean of those that show a place."""
    shown = torch.stack([_of_pictures(look.shown(), pictures) for look in looks]).sum(dim=0)
    seen = [look.groups() for look in looks]
    return {
        group: torch.stack([_of_pictures(groups[group], pictures) for groups in seen]).sum(dim=0) / shown.clamp(min=1)
        for group in seen[0]
    }


def _of_pictures(rows: Tensor, pictures: int) -> Tensor:
    if len(rows) % pictures != 0:
        raise _sampled_with(len(rows), pictures)
    return rows.unflatten(0, (-1, pictures)).sum(dim=0)


def _side_by_side(applications: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The people of all applications, on the finest of their grids."""
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


def _ask_again(model: ModelPatcher, moment: Moment) -> None:
    """Without the wrappers of others: one that caches would answer in the model's place."""
    ours = {
        key: mine
        for key, wrappers in model.wrappers.get(WrappersMP.APPLY_MODEL, {}).items()
        if (mine := [one for one in wrappers if isinstance(getattr(one, "__self__", None), IdentityPatch)])
    }
    options = {**model.model_options["transformer_options"], "sigmas": moment.sigma, **moment.options, LOOKING: True}
    options["wrappers"] = {WrappersMP.APPLY_MODEL: ours}
    needed = model.model.memory_required(list(moment.x.shape))
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()], memory_required=needed)
    device = model.load_device
    with torch.no_grad():
        model.model.apply_model(
            moment.x.to(device),
            moment.sigma.to(device),
            moment.c_concat,
            moment.c_crossattn,
            None,
            options,
            **moment.conds,
        )
