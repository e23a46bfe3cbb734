"""Looking into a sampled model: what the gate let through, and for whom."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

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
from .identity_patch import LOOKING, IdentityPatch, Moment
from .rows import POSITIVE

GROUPS = {"input": "down", "middle": "middle", "output": "up"}
"""UNet sections, in the words of the field."""


def activation_maps(model: ModelPatcher, pictures: int, latent: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """How much each place takes of each person: group -> [pictures, people, H, W], 0 to 1, on one grid.

    The groups are "all" and the values of GROUPS. Asks the model once more what it was last asked while the identity
    acted, and looks at the gates of that call, so a sampling run itself is not slowed. People of several applications
    follow each other. latent: height and width of what was sampled, if known. Raises InputError when the model has no
    DynamicID, or was last sampled with other pictures.
    """
    patches = _patches(model)
    if not patches:
        raise InputError(
            "Nothing of DynamicID acts in this model. Connect the model output of Apply DynamicID; its weight must be "
            "more than 0."
        )
    moments = {patch: moment for patch in patches if (moment := _moment(patch, patches)) is not None}
    if not moments:
        raise InputError(
            "This model has not been sampled yet, or its faces never acted. Connect the same model to the sampler and "
            "the sampler's latent here, so that sampling comes first, and look at start_percent and end_percent."
        )
    for moment in moments.values():
        _check_pictures(moment, pictures, latent)
    seen: dict[IdentityPatch, list[tuple[str, Tensor]]] = {patch: [] for patch in moments}
    for moment in dict.fromkeys(moments.values()):
        with ExitStack() as observers:
            for patch in (patch for patch, its in moments.items() if its is moment):
                observers.enter_context(patch.observed(_observer(patch, moment, seen[patch])))
            _ask_again(model, moment)
    return _side_by_side([_of_pictures(_by_group(maps), pictures) for maps in seen.values()])


def _moment(patch: IdentityPatch, patches: Sequence[IdentityPatch]) -> Moment | None:
    """When a patch last acted, as the first application saw it that was asked with it: it sees the conditioning of all
    behind it.
    """
    if patch.last is None:
        return None
    seen = (other.last for other in patches)
    return next((moment for moment in seen if moment is not None and _is_same(moment, patch)), patch.last)


def _is_same(moment: Moment, patch: IdentityPatch) -> bool:
    assert patch.last is not None
    return moment.x is patch.last.x and patch.key in moment.conds


def _check_pictures(moment: Moment, pictures: int, latent: tuple[int, int] | None) -> None:
    if moment.pictures is not None and moment.pictures != pictures:
        raise _sampled_with(moment.pictures, pictures)
    if latent is not None and latent != moment.latent:
        height, width = (side * LATENT_CELL for side in latent)
        last_height, last_width = (side * LATENT_CELL for side in moment.latent)
        raise InputError(
            f"This model was last sampled at {last_width} x {last_height} pixels, after the latent of "
            f"{width} x {height} that is connected. Connect the latent and the picture of its last sampler, or "
            "give each sampler an Apply DynamicID of its own."
        )


def _sampled_with(last: int, pictures: int) -> InputError:
    return InputError(
        f"The model was last sampled with {last} picture{'' if last == 1 else 's'}, not with {pictures}. Connect the "
        "latent of that sampler, and the image decoded from it."
    )


def _of_pictures(groups: dict[str, Tensor], pictures: int) -> dict[str, Tensor]:
    """Several positive prompts of one picture (Conditioning Combine) are several rows: their mean."""
    rows = len(groups["all"])
    if rows % pictures != 0:
        raise _sampled_with(rows, pictures)
    return {group: maps.unflatten(0, (-1, pictures)).mean(dim=0) for group, maps in groups.items()}


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


def _observer(patch: IdentityPatch, moment: Moment, maps: list[tuple[str, Tensor]]) -> Any:
    positive = [i for i, row in enumerate(moment.conds[patch.key]) if row.role == POSITIVE]

    def observe(
        layer: AttentionLayer,
        query: Tensor,
        identity: saa.IdentityTokens,
        layout: saa.Layout | None,
        grid: tuple[int, int],
    ) -> None:
        gates = saa.person_gates(query, identity, patch.settings, layout, patch.counts)
        maps.append((GROUPS[layer.block[0]], gates[positive].unflatten(-1, grid).cpu()))

    return observe


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


def _by_group(maps: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    height, width = max((tensor.shape[-2:] for _, tensor in maps), key=lambda size: size[0] * size[1])
    stretched = [(group, F.interpolate(tensor, size=(height, width), mode="bilinear")) for group, tensor in maps]
    groups = {group: [tensor for name, tensor in stretched if name == group] for group in GROUPS.values()}
    means = {group: torch.stack(tensors).mean(dim=0) for group, tensors in groups.items() if tensors}
    return {"all": torch.stack([tensor for _, tensor in stretched]).mean(dim=0), **means}
