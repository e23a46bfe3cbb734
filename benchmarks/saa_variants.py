"""The models that are measured: without people, and with some."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import comfy.model_patcher
import torch
from random_models import TEXT_WIDTH, TOKENS

from dynamicid_core import adapter, saa
from dynamicid_core.comfy_host import patching
from dynamicid_core.comfy_host.loading import DynamicID
from dynamicid_core.face import Face, Placement
from dynamicid_core.regions import Box

UNPATCHED = -1
"""Stands for a number of people: the model as it was, without even the low-rank updates."""
TEXT_TOKENS = 77


@dataclass
class Variant:
    """A model to measure with its conditioning."""

    people: int
    model: comfy.model_patcher.ModelPatcher
    positive: patching.Conditioning
    negative: patching.Conditioning


def placements(count: int) -> list[Placement]:
    """People side by side, each in a box of their own."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, TOKENS, TEXT_WIDTH)
    tokens = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    faces = [Face(tokens[i], tokens[count], base_model="sd15") for i in range(count)]
    return [Placement(face, Box(i / count, 0.2, (i + 0.9) / count, 0.9)) for i, face in enumerate(faces)]


def variants(base: comfy.model_patcher.ModelPatcher, dynamicid: DynamicID, people: Iterable[int]) -> list[Variant]:
    """The unpatched model, the one with merged updates only (0 people), and one for each number of people."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    positive, negative = ([[part, {}]] for part in text.split(1))
    merged = base.clone()
    tensors = dynamicid.checkpoint.modules["saa"]
    layers = adapter.layer_map({key: tensor.shape for key, tensor in base.model.diffusion_model.state_dict().items()})
    patching.add_low_rank_updates(merged, adapter.low_rank_updates(tensors, layers), 1.0)
    found = [Variant(UNPATCHED, base, positive, negative), Variant(0, merged, positive, negative)]
    for count in filter(None, people):
        settings = saa.SaaSettings()
        applied = patching.apply_dynamicid(base, positive, negative, dynamicid, placements(count), settings)
        found.append(Variant(count, *applied))
    return found


def describe(people: int) -> str:
    """A kind in words."""
    return "unpatched" if people == UNPATCHED else f"{people} people"
