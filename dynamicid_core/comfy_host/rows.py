"""The rows of a batch that ComfyUI runs through the UNet: which tokens they get, and which part of it they show."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.conds

from ..regions import Box

_log = logging.getLogger(__name__)

POSITIVE, NEGATIVE = 0, 1
"""Which of a person's tokens a row of the batch gets: those of the face, or those of no face."""
_NEGATIVE_PART = 1
"""The value for the negative prompt in the host's ``cond_or_uncond``."""


class Row(NamedTuple):
    """One row of a batch: which tokens it gets, and the area (height, width, top, left) of the latent it shows."""

    role: int
    area: tuple[int, int, int, int] | None = None


class Application:
    """One use of Apply DynamicID, shared by its model and its conditioning."""

    def __init__(self) -> None:
        self._samplings, self._warned = 0, False

    def __deepcopy__(self, _: Any) -> "Application":
        return self  # copied conditioning still belongs to this model

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """While its model is sampled."""
        self._samplings += 1
        try:
            yield
        finally:
            self._samplings -= 1

    def note_use(self) -> None:
        """Called when its conditioning is used; warns if its model is not, since the faces are then not painted."""
        if not self._samplings and not self._warned:
            self._warned = True
            _log.warning(
                "A prompt carries faces from Apply DynamicID, but the sampler's model does not come from that node: "
                "the faces have no effect. Connect the node's model output as well. Model merges keep only that of "
                "model1."
            )


class RowRoles(comfy.conds.CONDRegular):
    """The rows of a conditioning. Plain numbers instead of a tensor: reading them needs no wait for the device."""

    def __init__(self, rows: tuple[Row, ...], application: Application) -> None:
        super().__init__(rows)
        self._application = application

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **_: Any) -> "RowRoles":
        """The rows of a whole batch of one conditioning."""
        self._application.note_use()
        shown = None if area is None else tuple(area)
        return RowRoles(tuple(row._replace(area=shown) for row in self.cond) * batch_size, self._application)

    def _copy_with(self, cond: tuple[Row, ...]) -> "RowRoles":
        return RowRoles(cond, self._application)  # the host's own would lose the application

    def can_concat(self, other: Any) -> bool:
        """Whether rows of another conditioning may run in the same forward."""
        return isinstance(other, RowRoles)

    def concat(self, others: Sequence["RowRoles"]) -> tuple[Row, ...]:
        """All rows of a forward, as passed to the model."""
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        """For the host's memory estimate."""
        return [len(self.cond)]


def mark(options: Mapping[str, Any], key: str, roles: RowRoles) -> dict[str, Any]:
    """A copy of a prompt's options that passes ``roles`` to the patch with this key, whatever guider runs it."""
    return {**options, "model_conds": {**options.get("model_conds", {}), key: roles}}


def crop_to_window(rows: tuple[Row, ...], window: Any, latent: tuple[int, int]) -> tuple[Row, ...]:
    """The rows of a call for a context window that the host cut out of the latent, along its height or width.

    window: of transformer_options, None without one. A window that wraps around the edge has no area.
    """
    along = getattr(window, "dim", None)
    if along not in (2, 3):
        return rows
    shown = list(window.index_list)
    if shown != list(range(shown[0], shown[0] + len(shown))):
        return rows
    height, width = latent
    area = (len(shown), width, shown[0], 0) if along == 2 else (height, len(shown), 0, shown[0])
    return tuple(row._replace(area=area) if row.area is None else row for row in rows)


@dataclass(frozen=True)
class Forward:
    """One call of the UNet: its rows, the layout boost at its timestep, the latent's whole size, and its batch.

    The batch is a multiple of the rows where a pack that tiles the picture runs several tiles at once.
    """

    rows: tuple[Row, ...]
    boost: float
    latent: tuple[int, int]
    batch: int

    def order(self, batch: int, parts: Sequence[int]) -> tuple[int, ...]:
        """For each row of a layer's batch, the index of its row here. parts: the host's ``cond_or_uncond``."""
        order = tuple(range(len(self.rows))) * (self.batch // len(self.rows))
        if batch != self.batch:
            order = _coupled(order, batch, parts)
        if len(order) != batch:
            raise RuntimeError(f"{batch} rows reached a layer, but the conditioning describes {len(self.rows)}")
        return order

    def reordered(self, order: Sequence[int]) -> "Forward":
        """The same call with these of its rows."""
        return replace(self, rows=tuple(self.rows[row] for row in order))

    def views(self) -> tuple[Box | None, ...]:
        """The part of the picture that each row shows; a single one if it is the same for all."""
        views = tuple(_view(row.area, self.latent) for row in self.rows)
        return views[:1] if len(set(views)) == 1 else views


def _coupled(order: tuple[int, ...], batch: int, parts: Sequence[int]) -> tuple[int, ...]:
    """The order in a layer where a pack couples prompts, which repeats the rows of every part but the negative one."""
    if not parts or len(order) % len(parts) != 0:
        return order
    size, alone = len(order) // len(parts), parts.count(_NEGATIVE_PART)
    times = max((batch // size - alone) // max(len(parts) - alone, 1), 1)
    chunks = (
        order[i * size : (i + 1) * size] * (1 if part == _NEGATIVE_PART else times) for i, part in enumerate(parts)
    )
    return sum(chunks, ())


def _view(area: tuple[int, int, int, int] | None, latent: tuple[int, int]) -> Box | None:
    if area is None:
        return None
    height, width, top, left = area
    return Box(left / latent[1], top / latent[0], (left + width) / latent[1], (top + height) / latent[0])
