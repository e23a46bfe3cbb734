"""Where people are: boxes in fractions of the picture, turned into the grid of each layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .saa import Layout


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the picture, 0 <= x0 < x1 <= 1 and likewise in y, from the top left corner."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        edges = (self.x0, self.y0, self.x1, self.y1)
        if not all(math.isfinite(edge) and 0.0 <= edge <= 1.0 for edge in edges):
            raise InputError(
                f"The box x {self.x0:g} to {self.x1:g}, y {self.y0:g} to {self.y1:g} leaves the picture. "
                "All edges are fractions of the picture between 0 and 1."
            )
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(
                f"The box x {self.x0:g} to {self.x1:g}, y {self.y0:g} to {self.y1:g} is empty or reversed. "
                "Its right edge must lie right of its left edge, and its bottom edge below its top edge."
            )

    def cells(self, height: int, width: int) -> Tensor:
        """Which cells of a grid the box covers, bool [height, width].

        Edges are truncated to cells as in the released code. A box smaller than a cell covers the cell of its centre.
        """
        rows = _cell_range(self.y0, self.y1, height)
        columns = _cell_range(self.x0, self.x1, width)
        covered = torch.zeros(height, width, dtype=torch.bool)
        covered[rows, columns] = True
        return covered


def layout_on_grid(
    boxes: Sequence[Box | None], tokens: Sequence[int], height: int, width: int, boost: float, device: Any = None
) -> Layout | None:
    """Which tokens each query of a layer may see, and the layout boost, for one box (or None) and token count a person.

    Inside the boxes of some people only their tokens are allowed (the union where boxes overlap), outside all boxes
    everybody's; a person without a box is allowed everywhere. The gate becomes ``w + boost`` inside any box and
    ``w / (1 + boost)`` outside. Without any box there is no layout: None.
    """
    if all(box is None for box in boxes):
        return None
    nobody = torch.zeros(height, width, dtype=torch.bool)
    inside = torch.stack([nobody if box is None else box.cells(height, width) for box in boxes]).flatten(
        1
    )  # [people, N]
    anywhere = inside.any(dim=0)
    unplaced = torch.tensor([box is None for box in boxes])[:, None]
    people_allowed = inside | unplaced | ~anywhere
    allowed = people_allowed.repeat_interleave(torch.tensor(tokens), dim=0).T[None, None].to(device)  # [1, 1, N, T]
    if boost == 0:
        return Layout(allowed)
    inside_any = anywhere.float()[None, :, None].to(device)
    return Layout(allowed, inside_any + (1 - inside_any) / (1 + boost), inside_any * boost)


def _cell_range(start: float, end: float, cells: int) -> slice:
    first, last = int(start * cells), int(end * cells)
    if first < last:
        return slice(first, last)
    centre = min(int((start + end) / 2 * cells), cells - 1)
    return slice(centre, centre + 1)
