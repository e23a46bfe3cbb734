"""Looking into a sampled model: what the gate let through, and for whom."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .. import saa
from ..adapter import AttentionLayer
from ..errors import InputError
from .identity_patch import IdentityPatch, Moment
from .rows import POSITIVE

GROUPS = {"input": "down", "middle": "middle", "output": "up"}
"""UNet sections, in the words of the field."""


def activation_maps(model: ModelPatcher, pictures: int) -> dict[str, Tensor]:
    """How much each place takes of each person: group -> [pictures, people, H, W], 0 to 1, on one grid.

    The groups are "all" and the values of GROUPS. Asks the model once more what it was last asked while the identity
    acted, and looks at the gates of that call, so a sampling run itself is not slowed. People of several applications
    follow each other. Raises InputError when the model has no DynamicID or was not sampled with so many pictures.
    """
    patches = _patches(model)
    if not patches:
        raise InputError(
            "Nothing of DynamicID acts in this model. Connect the model output of Apply DynamicID; its weight must be "
            "more than 0."
        )
    moment = patches[0].last  # the first application sees the conditioning of all
    if moment is None:
        raise InputError(
            "This model has not been sampled yet, or its faces never acted. Connect the same model to the sampler and "
            "the sampler's latent here, so that sampling comes first, and look at start_percent and end_percent."
        )
    seen: list[list[tuple[str, Tensor]]] = [[] for _ in patches]
    with ExitStack() as observers:
        for patch, maps in zip(patches, seen, strict=True):
            observers.enter_context(patch.observed(_observer(patch, moment, maps)))
        _ask_again(model, moment)
    groups = _by_group([_together(maps) for maps in zip(*seen, strict=True)])
    rows = len(groups["all"])
    if rows % pictures != 0:
        raise InputError(
            f"The model was last sampled with {rows} picture{'' if rows == 1 else 's'}, not with {pictures}. Connect "
            "the latent of that sampler, and the image decoded from it."
        )
    # Several positive prompts of one picture (Conditioning Combine) are several rows: show their mean.
    return {group: maps.unflatten(0, (-1, pictures)).mean(dim=0) for group, maps in groups.items()}


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
    options = {**model.model_options["transformer_options"]}
    options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(model.wrappers)
    options["sigmas"] = moment.sigma
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
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


def _together(maps: Sequence[tuple[str, Tensor]]) -> tuple[str, Tensor]:
    """One layer as seen by each application: their people side by side."""
    return maps[0][0], torch.cat([tensor for _, tensor in maps], dim=1)


def _by_group(maps: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    height, width = max((tensor.shape[-2:] for _, tensor in maps), key=lambda size: size[0] * size[1])
    stretched = [(group, F.interpolate(tensor, size=(height, width), mode="bilinear")) for group, tensor in maps]
    groups = {group: [tensor for name, tensor in stretched if name == group] for group in GROUPS.values()}
    means = {group: torch.stack(tensors).mean(dim=0) for group, tensors in groups.items() if tensors}
    return {"all": torch.stack([tensor for _, tensor in stretched]).mean(dim=0), **means}
