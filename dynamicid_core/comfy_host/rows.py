"""The rows of a batch that ComfyUI runs through the UNet: whose tokens they carry, which part of it they show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.conds

from ..regions import Box

POSITIVE, NEGATIVE = 0, 1
"""Which of a person's tokens a row of the batch carries: those of the face, or those of no face."""


class Row(NamedTuple):
    """One row of a batch: whose tokens it carries, and the area (height, width, top, left) of the latent it shows."""

    role: int
    area: tuple[int, int, int, int] | None = None


class RowRoles(comfy.conds.CONDRegular):
    """The rows of a conditioning. Plain numbers instead of a tensor: reading them needs no wait for the device."""

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **_: Any) -> "RowRoles":
        """The rows of a whole batch of one conditioning."""
        shown = None if area is None else tuple(area)
        return RowRoles(tuple(row._replace(area=shown) for row in self.cond) * batch_size)

    def can_concat(self, other: Any) -> bool:
        """Whether rows of another conditioning may run in the same forward."""
        return isinstance(other, RowRoles)

    def concat(self, others: Sequence["RowRoles"]) -> tuple[Row, ...]:
        """All rows of a forward, as they reach the model."""
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        """For the host's memory estimate."""
        return [len(self.cond)]


@dataclass(frozen=True)
class Forward:
    """One call of the UNet: its rows, the layout boost at its timestep, and the latent's whole size."""

    rows: tuple[Row, ...]
    boost: float
    latent: tuple[int, int]

    def of(self, batch: int) -> "Forward":
        """The same for a layer's batch; packs that tile the picture run several tiles of the whole batch at once."""
        if batch % len(self.rows) != 0:
            raise RuntimeError(f"{batch} rows reached a layer, but the conditioning speaks of {len(self.rows)}")
        return replace(self, rows=self.rows * (batch // len(self.rows)))

    def views(self) -> tuple[Box | None, ...]:
        """Which part of the picture each row shows; a single one when it is the same for all."""
        views = tuple(_view(row.area, self.latent) for row in self.rows)
        return views[:1] if len(set(views)) == 1 else views


def _view(area: tuple[int, int, int, int] | None, latent: tuple[int, int]) -> Box | None:
    if area is None:
        return None
    height, width, top, left = area
    return Box(left / latent[1], top / latent[0], (left + width) / latent[1], (top + height) / latent[0])
