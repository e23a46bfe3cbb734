"""Clothes on the shoulders of the mesh, by position on the base mesh."""

import numpy as np

from .mesh import Array
from .people import CLOTH_COLOURS, Identity
from .render import angle_of, ramp

_THICKNESS = {"T-shirt": 0.03, "V-neck sweater": 0.06, "turtleneck": 0.09, "striped jumper": 0.05, "jacket": 0.08}
_STRIPE = 0.16  # mesh units


def cover(identity: Identity, rest: Array) -> Array:
    """How much cloth covers points [m, 3] on the skin, 0 to 1."""
    if identity.garment == "turtleneck":
        return ramp(rest[:, 1] + 0.15 * rest[:, 2], 6.30, 6.26)
    opening = 0.95 + np.where(_deep(identity), 0.75, 0.0) * np.exp(-((angle_of(rest) / 0.5) ** 2))
    below_chin = ramp(rest[:, 1], 5.95, 5.85)
    return ramp(_from_neck(rest), opening, opening + 0.04) * below_chin


def thickness(identity: Identity, rest: Array) -> Array:
    """The thickness of cloth above the skin at points [m, 3], in units of the head frame."""
    return _THICKNESS[identity.garment] * cover(identity, rest)


def paint(identity: Identity, rest: Array) -> Array:
    """Linear RGB [m, 3] of the cloth at points [m, 3]."""
    first, second = (np.array(CLOTH_COLOURS[name]) for name in (identity.cloth_colour, identity.cloth_second))
    colour = np.broadcast_to(first, rest.shape)
    if identity.garment == "striped jumper":
        stripe = np.sin(_from_neck(rest) * 2 * np.pi / _STRIPE) > 0
        colour = np.where(stripe[:, None], first, second)
    if identity.garment == "jacket":
        shirt = abs(rest[:, 0]) < 0.12 + 0.45 * (rest[:, 1] - 4.9).clip(0)
        colour = np.where((shirt & (rest[:, 2] > 0))[:, None], second, first)
    # Folds run from the shoulders to the middle.
    folds = np.sin(7 * rest[:, 1] + 5 * abs(rest[:, 0]) + identity.seed) * np.sin(3 * rest[:, 0] + 2 * identity.seed)
    return (colour * (1 + 0.12 * folds)[:, None]).astype(np.float32)


def _deep(identity: Identity) -> bool:
    return identity.garment == "V-neck sweater"


def _from_neck(rest: Array) -> Array:
    """How far down and out from the neck a point is, in mesh units."""
    return np.hypot(rest[:, 0], rest[:, 2] - 0.15) + 0.9 * (5.9 - rest[:, 1])
