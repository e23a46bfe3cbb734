"""The models to measure, with and without people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import comfy.model_patcher
import torch
import torch.nn.functional as F
from random_models import TEXT_WIDTH, TOKENS

from dynamicid_core import adapter, saa
from dynamicid_core.comfy_host import patching
from dynamicid_core.comfy_host.loading import DynamicID
from dynamicid_core.face import Face, Placement
from dynamicid_core.regions import Box, MaskRegion, Region, from_mask

UNPATCHED = -1
"""In place of a number of people: the original model, without even the low-rank updates."""
TEXT_TOKENS = 77
MASK_SIZE = 512


@dataclass
class Variant:
    """A model to measure, with its conditioning."""

    people: int
    model: comfy.model_patcher.ModelPatcher
    positive: patching.Conditioning
    negative: patching.Conditioning


def placements(count: int, soft_masks: bool) -> list[Placement]:
    """People side by side, each in their own box, or in a mask with a soft edge instead."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, TOKENS, TEXT_WIDTH)
    tokens = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    faces = [Face(tokens[i], tokens[count], base_model="sd15") for i in range(count)]
    boxes = [Box(i / count, 0.2, (i + 0.9) / count, 0.9) for i in range(count)]
    regions: Sequence[Region] = [softened(box) for box in boxes] if soft_masks else boxes
    return [Placement(face, region) for face, region in zip(faces, regions, strict=True)]


def softened(box: Box) -> MaskRegion:
    """A mask of the box, its edge blurred over an eighth of the picture."""
    drawn = box.coverage(MASK_SIZE, MASK_SIZE)[None, None]
    blur = MASK_SIZE // 16
    return from_mask(F.avg_pool2d(drawn, 2 * blur + 1, stride=1, padding=blur)[0])


def variants(
    base: comfy.model_patcher.ModelPatcher, dynamicid: DynamicID, people: Iterable[int], soft_masks: bool
) -> list[Variant]:
    """The unpatched model, the one with merged updates only (0 people), and one for each number of people."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    positive, negative = ([[part, {}]] for part in text.split(1))
    merged = base.clone()
    layers = adapter.attention_layers(base.model.diffusion_model)
    patching.add_low_rank_updates(merged, adapter.low_rank_updates(dynamicid.updates, layers), 1.0)
    found = [Variant(UNPATCHED, base, positive, negative), Variant(0, merged, positive, negative)]
    for count in filter(None, people):
        settings = saa.SaaSettings()
        applied = patching.apply_dynamicid(base, positive, negative, dynamicid, placements(count, soft_masks), settings)
        found.append(Variant(count, *applied))
    return found


def describe(people: int) -> str:
    """A variant in words."""
    return "unpatched" if people == UNPATCHED else f"{people} people"
