"""Hair as one shell around the skull: a grid of paths from the crown down, painted with strands.

Short hair ends at the hairline; long hair falls from the widest place of the skull.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .mesh import Array, HeadMesh
from .people import Identity
from .render import ramp, scalp
from .skin import noise

_CENTRE = np.array([0, -0.42, -0.05], np.float32)  # of the skull, in the head frame
_AROUND, _ALONG = 120, 36
_STRANDS = (192, 768)  # along, around
_SOLID = 0.86  # part of a path that is always opaque
_FALLS_FROM = -0.05  # elevation in radians at which long hair leaves the skull


@dataclass(frozen=True)
class Style:
    """thickness: in units of the head frame. falls_to: y at which falling hair ends, None for short hair.
    curl: how far the shell is crumpled. knot: radius of a bun.
    """

    thickness: float
    falls_to: float | None = None
    curl: float = 0.0
    knot: float = 0.0


STYLES: dict[str, Style] = {
    "short": Style(0.11),
    "side": Style(0.15),
    "curly": Style(0.24, curl=0.055),
    "afro": Style(0.50, curl=0.03),
    "bun": Style(0.07, knot=0.34),
    "bob": Style(0.15, falls_to=1.0),
    "long": Style(0.13, falls_to=2.1),
}
"""What each of people.HAIR_STYLES adds to the head; bald and buzz are paint only."""


@dataclass(frozen=True, eq=False)
class Hair:
    """vertices: [n, 3] in the head frame. triangles: [t, 3]; ends: [e, 3], those that may be see-through. places:
    [n, 2], texture coordinates around and along, 0 to 1. strands: map [*_STRANDS, 2] of brightness and of cover.
    """

    vertices: Array
    triangles: Array
    ends: Array
    places: Array
    strands: Array

    def look_up(self, places: Array) -> Array:
        """Brightness and cover [m, 2] at places [m, 2]."""
        column, row = (places * (np.array(_STRANDS[::-1]) - 1)).round().astype(int).T
        return self.strands[row, column]


def grow(identity: Identity, mesh: HeadMesh, vertices: Array) -> Hair | None:
    """The hair of a person whose head at rest has these vertices [n, 3]; None if it is only painted on the skin."""
    if identity.hair_style not in STYLES:
        return None
    style = STYLES[identity.hair_style]
    rng = np.random.default_rng([4, identity.seed])
    around = np.linspace(-np.pi, np.pi, _AROUND + 1)
    along = np.linspace(0, 1, _ALONG)
    skull = _Skull(mesh, vertices, identity.hairline, over_ears=style.falls_to is not None)
    points = _paths(identity, style, skull, around, along)
    if style.curl:
        away = points - _CENTRE
        crumple = ndimage.gaussian_filter(rng.standard_normal((_ALONG, _AROUND)), 1.6, mode=("nearest", "wrap"))
        crumple = np.column_stack([crumple, crumple[:, 0]]) / crumple.std()
        crumple *= ramp(along, 0, 0.15)[:, None]  # all paths meet at the crown
        points += style.curl * crumple[..., None] * away / np.linalg.norm(away, axis=-1, keepdims=True)
    triangles = _grid_triangles(_ALONG, _AROUND + 1)
    places = np.stack(np.meshgrid(np.linspace(0, 1, _AROUND + 1), along), axis=-1).reshape(-1, 2)
    shell = points.reshape(-1, 3)
    if style.knot:
        knot, knot_triangles, knot_places = _knot(style.knot, skull)
        triangles = np.concatenate([triangles, knot_triangles + len(shell)])
        shell, places = np.concatenate([shell, knot]), np.concatenate([places, knot_places])
    at_end = (places[triangles, 1] > _SOLID).any(axis=1)
    return Hair(
        vertices=shell.astype(np.float32),
        triangles=triangles[~at_end],
        ends=triangles[at_end],
        places=places.astype(np.float32),
        strands=_strands(style, rng),
    )


class _Skull:
    """The skull's radius, and how far down hair grows, by direction."""

    def __init__(self, mesh: HeadMesh, vertices: Array, hairline: float, over_ears: bool) -> None:
        rows = np.flatnonzero(mesh.material_mask("skin") & (mesh.rest[:, 1] > 6.4) & ((mesh.ears < 0.2) | over_ears))
        away = vertices[rows] - _CENTRE
        self._length = np.linalg.norm(away, axis=1)
        self._directions = away / self._length[:, None]
        self._tree = cKDTree(self._directions)
        grows = scalp(mesh.rest[rows], hairline) > 0.5
        angle = np.arctan2(away[grows, 0], away[grows, 2])
        elevation = np.arcsin(self._directions[grows, 1] * -1)
        bins = ((angle / (2 * np.pi) + 0.5) * 48).astype(int).clip(0, 47)
        lowest = np.full(48, 1.2)
        np.minimum.at(lowest, bins, elevation)
        self._lowest = ndimage.gaussian_filter1d(lowest, 0.8, mode="wrap")
        self.top = float(vertices[rows, 1].min())

    def radius(self, directions: Array) -> Array:
        """Distance of the skin from the centre in directions [..., 3] of length 1."""
        _, nearest = self._tree.query(directions.reshape(-1, 3), 6)
        return self._length[nearest].mean(axis=1).reshape(directions.shape[:-1])

    def hairline(self, around: Array) -> Array:
        """Elevation in radians at which hair ends, by angle from the front."""
        middles = (np.arange(48) + 0.5) / 48 * 2 * np.pi - np.pi
        return np.interp(around, middles, self._lowest, period=2 * np.pi)


def _paths(identity: Identity, style: Style, skull: _Skull, around: Array, along: Array) -> Array:
    """Points [along, around, 3] of the shell."""
    side = abs(around)
    ends = skull.hairline(around)
    falls = np.zeros_like(side) if style.falls_to is None else ramp(side, 0.95, 1.25)
    if style.falls_to is not None and identity.fringe:
        ends = np.where(side < 0.85, np.minimum(ends, 0.30 + 0.25 * side**2), ends)
    if identity.hair_style == "side":  # swept across the forehead
        ends = ends - 0.25 * np.exp(-(((around - 0.45 * identity.parting) / 0.35) ** 2))
    ends = ends + falls * (_FALLS_FROM - ends)
    on_skull = 1 - 0.55 * falls  # share of a path until it leaves the skull
    part = (along[:, None] / on_skull).clip(0, 1)
    elevation = np.pi / 2 + part * (ends - np.pi / 2)
    directions = np.stack(
        [np.cos(elevation) * np.sin(around), -np.sin(elevation), np.cos(elevation) * np.cos(around)], axis=-1
    )
    # Volume is greatest above and meets the skin at the hairline, unless the hair falls on from there.
    edge = ramp(1 - part, 0, 0.25) * (1 - falls) + falls
    fullness = 1 + 0.35 * np.sin(around) * identity.parting if identity.hair_style == "side" else np.ones_like(around)
    offset = 0.025 + style.thickness * edge * fullness
    points = _CENTRE + directions * (skull.radius(directions) + offset)[..., None]
    below = ((along[:, None] - on_skull) / (1 - on_skull).clip(1e-6)).clip(0, 1) * (falls > 0)
    target = style.falls_to or 0.0
    drop = below * (_CENTRE[1] + (target - _CENTRE[1]) * identity.hair_length - points[-1, :, 1]) * falls
    points[..., 1] += drop
    flare = 1 + below * (0.04 if identity.hair_style == "long" else -0.12)
    points[..., 0] *= flare
    points[..., 2] = _CENTRE[2] + (points[..., 2] - _CENTRE[2]) * flare
    return points


def _knot(radius: float, skull: _Skull) -> tuple[Array, Array, Array]:
    """A ball on top of the head: vertices, triangles, places."""
    rows, columns = 12, 25
    down, around = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(-np.pi, np.pi, columns), indexing="ij")
    ball = np.stack([np.sin(down) * np.sin(around), -np.cos(down), np.sin(down) * np.cos(around)], axis=-1)
    middle = np.array([0, skull.top - 0.7 * radius, -0.35])
    # Its underside lies in the hair, so strands end nowhere in sight.
    places = np.stack([around / (2 * np.pi) + 0.5, 0.5 * down / np.pi], axis=-1)
    return (middle + radius * ball).reshape(-1, 3), _grid_triangles(rows, columns), places.reshape(-1, 2)


def _grid_triangles(rows: int, columns: int) -> Array:
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, below = corner + 1, corner + columns
    return np.concatenate([np.stack([corner, right, below], 1), np.stack([right, below + 1, below], 1)])


def _strands(style: Style, rng: np.random.Generator) -> Array:
    """Brightness and cover of the shell, [*_STRANDS, 2]."""
    rows, columns = _STRANDS
    if style.curl:
        bright = 0.9 + 0.28 * noise(rng, 14, _STRANDS) + 0.2 * noise(rng, 5, _STRANDS)
    else:
        coarse = ndimage.gaussian_filter(rng.standard_normal(_STRANDS), (25, 5), mode="wrap")
        fine = ndimage.gaussian_filter(rng.standard_normal(_STRANDS), (14, 0.9), mode="wrap")
        bright = 0.9 + 0.2 * coarse / coarse.std() + 0.22 * fine / fine.std()
    ragged = ndimage.gaussian_filter1d(rng.standard_normal(columns), 2.0, mode="wrap")
    ends = (0.95 + 0.025 * ragged / ragged.std()).clip(_SOLID + 0.05, 1)
    cover = ramp(ends - np.linspace(0, 1, rows)[:, None], 0, 0.05)
    return np.dstack([bright.clip(0.25, 1.7), cover]).astype(np.float32)
