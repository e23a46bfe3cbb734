"""The people of one application, with their tokens concatenated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..face import Placement
from ..regions import LATENT_CELL, Box, MaskRegion, Region


@dataclass(frozen=True, eq=False)
class People:
    """All people in the picture.

    tokens: [2, T, D] float32, row POSITIVE the faces', row NEGATIVE those of no face. token_weights: [1, T, 1],
    multiplies the values. key_scale: [T], multiplies the attention logits. counts: number of tokens per person.
    regions: of each person, None for anywhere.
    """

    tokens: Tensor
    token_weights: Tensor
    key_scale: Tensor
    counts: tuple[int, ...]
    regions: tuple[Region | None, ...]

    @classmethod
    def from_placements(cls, placements: Sequence[Placement], weight: float) -> "People":
        """Collects placed faces; ``weight`` multiplies the weight of each."""
        faces = [placement.face for placement in placements]
        counts = tuple(face.tokens.shape[1] for face in faces)
        positive = torch.cat([face.tokens for face in faces], dim=1)
        negative = torch.cat([face.uncond_tokens for face in faces], dim=1)
        weights = [weight * placement.weight for placement in placements]
        scales = [
            torch.ones(count) if face.key_scale is None else face.key_scale
            for face, count in zip(faces, counts, strict=True)
        ]
        return cls(
            tokens=torch.cat((positive, negative)).float(),
            token_weights=torch.tensor(weights).repeat_interleave(torch.tensor(counts))[None, :, None],
            key_scale=torch.cat(scales),
            counts=counts,
            regions=tuple(placement.region for placement in placements),
        )

    @property
    def have_regions(self) -> bool:
        """Whether anybody has a region."""
        return any(region is not None for region in self.regions)

    def regions_for(self, latent: tuple[int, int]) -> list[Box | MaskRegion | None]:
        """The regions on a latent of this size; those given in pixels become fractions of its picture."""
        height, width = (side * LATENT_CELL for side in latent)
        return [None if region is None else region.on_picture(height, width) for region in self.regions]
