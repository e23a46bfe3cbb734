"""Regions of people, as boxes and masks, and the layouts they give on each layer's grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .saa import Layout, Shares, padded_count

LATENT_CELL = 8
"""Side of a latent cell in pixels, in SD1.5 and SDXL alike."""

INSIDE_THRESHOLD = 0.5
"""Fraction of a mask's largest value from which a cell is inside the region."""
_DIGITS = 9  # x + width is rounded to this many, so that 0.6 + 0.3 is 0.9
_DIGITS_OF_CELLS = 6


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the picture, 0 <= x0 < x1 <= 1 and likewise in y, from the top left corner."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        edges = (self.x0, self.y0, self.x1, self.y1)
        spelled = f"The box x {self.x0:g} to {self.x1:g}, y {self.y0:g} to {self.y1:g}"
        if not all(math.isfinite(edge) for edge in edges):
            raise InputError(f"{spelled} has edges that are not numbers.")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(f"{spelled} is empty or reversed. Its width and height must be more than 0.")
        if not all(0.0 <= edge <= 1.0 for edge in edges):
            raise InputError(
                f"{spelled} leaves the picture. x + width and y + height may be 1 at most: all of them are fractions "
                "of the picture."
            )

    @classmethod
    def at(cls, x: float, y: float, width: float, height: float) -> "Box":
        """The box with its top left corner at (x, y); all in fractions of the picture."""
        return cls(x, y, round(x + width, _DIGITS), round(y + height, _DIGITS))

    @property
    def inside_threshold(self) -> float:
        """The coverage from which a cell is inside."""
        return INSIDE_THRESHOLD

    def coverage(self, height: int, width: int, view: "Box | None" = None) -> Tensor:
        """How much the region covers each cell of a grid, float32 [height, width], here 0 or 1.

        view: the part of the picture that the grid shows, by default all of it. Edges are truncated to cells, as in the
        released code. A box smaller than a cell covers the cell at its centre.
        """
        covered = torch.zeros(height, width)
        shown = view or Box(0, 0, 1, 1)
        seen = self._within(shown)
        if seen is not None:
            rows = _cell_range(seen.y0, seen.y1, height, (self.y1 - self.y0) / (shown.y1 - shown.y0))
            columns = _cell_range(seen.x0, seen.x1, width, (self.x1 - self.x0) / (shown.x1 - shown.x0))
            covered[rows, columns] = 1.0
        return covered

    def on_picture(self, picture_height: int, picture_width: int) -> "Box":
        """Itself: fractions fit a picture of any size."""
        return self

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in fractions of the picture."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def _within(self, view: "Box") -> "Box | None":
        """The visible part of the box in fractions of the view; None if there is none."""
        x0, x1 = (min(max((x - view.x0) / (view.x1 - view.x0), 0.0), 1.0) for x in (self.x0, self.x1))
        y0, y1 = (min(max((y - view.y0) / (view.y1 - view.y0), 0.0), 1.0) for y in (self.y0, self.y1))
        return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(frozen=True)
class PixelBox:
    """A rectangle in pixels of the generated picture, whose size is known only when it is sampled."""

    x: float
    y: float
    width: float
    height: float

    def on_picture(self, picture_height: int, picture_width: int) -> Box:
        """The box in fractions of a picture of this size, clipped to it."""
        x0, y0 = max(self.x, 0) / picture_width, max(self.y, 0) / picture_height
        x1 = min((self.x + self.width) / picture_width, 1.0)
        y1 = min((self.y + self.height) / picture_height, 1.0)
        if x0 >= 1 or y0 >= 1 or x1 <= x0 or y1 <= y0:
            raise InputError(
                f"The bounding box at {self.x:g}, {self.y:g}, {self.width:g} x {self.height:g} pixels is empty or lies "
                f"outside the picture ({picture_width} x {picture_height})."
            )
        return Box(x0, y0, x1, y1)


@dataclass(frozen=True, eq=False)
class MaskRegion:
    """A mask [H, W] of any size, 0 to 1, stretched over the picture. Create it with ``from_mask``."""

    mask: Tensor

    @property
    def inside_threshold(self) -> float:
        """The coverage from which a cell is inside: INSIDE_THRESHOLD times the mask's largest value."""
        return INSIDE_THRESHOLD * float(self.mask.max())

    @property
    def centre(self) -> tuple[float, float]:
        """The centre of mass, (x, y) in fractions of the picture."""
        height, width = self.mask.shape
        total = self.mask.sum()
        x = (self.mask.sum(dim=0) * (torch.arange(width) + 0.5)).sum() / total / width
        y = (self.mask.sum(dim=1) * (torch.arange(height) + 0.5)).sum() / total / height
        return float(x), float(y)

    def on_picture(self, picture_height: int, picture_width: int) -> "MaskRegion":
        """Itself: a mask is stretched over a picture of any size."""
        return self

    def coverage(self, height: int, width: int, view: Box | None = None) -> Tensor:
        """As ``Box.coverage``, with the mask's mean over each cell.

        If a spot is too small to fill half a cell, the cell with most of it takes the spot's value.
        """
        mask = self.mask if view is None else _crop(self.mask, view)
        cells = F.adaptive_avg_pool2d(mask[None, None], (height, width))[0, 0]
        if cells.max() < self.inside_threshold <= mask.max():
            cells.view(-1)[cells.argmax()] = mask.max()
        # Cells on the edge of a binary mask are in or out, as with a box, so that the person is not weaker there.
        return (cells >= self.inside_threshold).float() if self._has_no_shades else cells

    @property
    def _has_no_shades(self) -> bool:
        return bool(((self.mask == 0) | (self.mask == 1)).all())


Region = Box | PixelBox | MaskRegion
_SIDES = ("x", "y", "width", "height")


def from_mask(mask: Tensor) -> MaskRegion:
    """A ComfyUI MASK [H, W] or [1, H, W] -> region. Raises InputError for batches and for empty or broken masks."""
    if mask.ndim == 3 and len(mask) != 1:
        raise InputError(f"The mask is a batch of {len(mask)}; a face takes one. Connect one of them.")
    if mask.ndim not in (2, 3) or mask.numel() == 0:
        raise InputError(
            f"A mask must have the shape [height, width] and at least one pixel; found {list(mask.shape)}."
        )
    mask = mask.detach().float().cpu().reshape(mask.shape[-2:])
    if not mask.isfinite().all():
        raise InputError("The mask holds values that are not numbers (NaN or infinity).")
    mask = mask.clamp(0, 1)
    if not mask.any():
        raise InputError("The mask is empty: it is 0 everywhere. Paint where the face should be, or disconnect it.")
    return MaskRegion(mask)


def from_bounding_box(boxes: Any) -> PixelBox:
    """A BOUNDING_BOX, {x, y, width, height} in pixels, or a list with one of them -> region.

    Detectors give a list of boxes for each picture of a batch.
    """
    box = boxes
    while isinstance(box, (list, tuple)) and len(box) == 1:
        box = box[0]
    if not isinstance(box, dict) or not box.keys() >= set(_SIDES):
        found = f"a list of {len(box)}" if isinstance(box, (list, tuple)) else type(box).__name__
        raise InputError(f"A face takes one bounding box with x, y, width and height in pixels; found {found}.")
    for name in _SIDES:
        if not isinstance(box[name], Real) or not math.isfinite(box[name]):  # NumPy's numbers are real ones, too
            raise InputError(f"The bounding box's {name} is {box[name]!r}; it must be a number of pixels.")
    if box["width"] <= 0 or box["height"] <= 0:
        raise InputError(f"The bounding box is empty: {box['width']:g} x {box['height']:g} pixels.")
    return PixelBox(*(float(box[name]) for name in _SIDES))


def layout_on_grid(
    regions: Sequence[Box | MaskRegion | None],
    tokens: Sequence[int],
    height: int,
    width: int,
    boost: float,
    views: Sequence[Box | None] = (None,),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pad: bool = False,
) -> Layout | None:
    """Which tokens each query of a layer may see, and the layout boost. regions, tokens: of each person.

    Inside regions only the tokens of these people are allowed (of all of them where regions overlap), outside all
    regions those of everybody; a person without a region is allowed everywhere. The gate becomes ``w + boost`` inside
    any region and ``w / (1 + boost)`` outside. views: for each row of the batch, or for all of them, which part of the
    picture it shows. dtype: of the mask, that of the attention. pad: whether the tokens are padded_count
    (``saa.padded_count``). None if nobody has a region.
    """
    if all(region is None for region in regions):
        return None
    everywhere = torch.zeros(height, width)
    covered = torch.stack(
        [
            torch.stack([everywhere if region is None else region.coverage(height, width, view) for region in regions])
            for view in views
        ]
    ).flatten(2)  # [views, people, N]
    thresholds = torch.tensor([INSIDE_THRESHOLD if region is None else region.inside_threshold for region in regions])
    inside = covered >= thresholds[:, None]
    anywhere = inside.any(dim=1, keepdim=True)
    unplaced = torch.tensor([region is None for region in regions])[:, None]
    allowed = (inside | unplaced | ~anywhere).repeat_interleave(torch.tensor(tokens), dim=1)  # [views, T, N]
    columns = padded_count(sum(tokens)) if pad else sum(tokens)
    scale, offset = boosted_gate(anywhere.float().mT, boost) if boost else (None, None)
    return Layout(
        None if allowed.all() else _mask(allowed, torch.zeros(()), columns).to(device, dtype),
        None if scale is None else scale.to(device),
        None if offset is None else offset.to(device),
        _shares(covered, allowed, tokens, columns, device, dtype),
    )


def boosted_gate(inside: Tensor, boost: float) -> tuple[Tensor, Tensor]:
    """The layout boost as (scale, offset), see ``Layout``, both shaped like ``inside``: ``w + boost`` where that is 1,
    ``w / (1 + boost)`` where it is 0.
    """
    return inside + (1 - inside) / (1 + boost), inside * boost


def _mask(allowed: Tensor, logits: Tensor, columns: int) -> Tensor:
    """Both [views, T, N] -> [views, 1, N, columns]: the logits where allowed, else -inf."""
    mask = torch.where(allowed, logits, -math.inf).mT.contiguous()  # fused kernels need this
    return F.pad(mask, (0, columns - mask.shape[-1]), value=-math.inf).unsqueeze(1)


def _shares(
    covered: Tensor,
    allowed: Tensor,
    tokens: Sequence[int],
    columns: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Shares | None:
    """The shares for covered [views, people, N] and allowed [views, T, N]; None without soft masks."""
    soft = (covered > 0) & (covered < 1)
    if not soft.any():
        return None
    shares = torch.where(soft, covered, 1.0)  # where a mask is 0, it is as outside a box
    counts = torch.tensor(tokens)
    mask = _mask(allowed, shares.log().repeat_interleave(counts, dim=1), columns)
    owners = torch.eye(len(tokens)).repeat_interleave(counts, dim=0)
    owners = F.pad(owners, (0, 0, 0, columns - len(owners)))
    return Shares(*(part.to(device, dtype) for part in (shares.mT, mask, owners)))


def _cell_range(start: float, end: float, cells: int, whole: float) -> slice:
    """The cells of an interval. whole: its length before clipping; only one shorter than a cell gets a cell anyway."""
    first, last = int(_cells(start, cells)), int(_cells(end, cells))
    if first < last or _cells(whole, cells) >= 1:
        return slice(first, last)
    centre = min(int(_cells((start + end) / 2, cells)), cells - 1)
    return slice(centre, centre + 1)


def _cells(fraction: float, cells: int) -> float:
    """A fraction in cells, rounded so that 120 of 832 pixels are exactly 15 of 104 cells."""
    return round(fraction * cells, _DIGITS_OF_CELLS)


def _crop(mask: Tensor, view: Box) -> Tensor:
    height, width = mask.shape
    top, left = min(int(_cells(view.y0, height)), height - 1), min(int(_cells(view.x0, width)), width - 1)
    bottom, right = math.ceil(_cells(view.y1, height)), math.ceil(_cells(view.x1, width))
    return mask[top : max(bottom, top + 1), left : max(right, left + 1)]
