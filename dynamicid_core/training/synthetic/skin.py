"""Details of skin: blotches, freckles, moles, wrinkles and beards, painted on a map of the head.

The map unrolls the head: columns are angles around the neck's axis, from the back over the person's right (the
picture's left) and the front to the back; rows are heights, from the crown down.
"""

import numpy as np
from scipy import ndimage

from .mesh import Array
from .people import HAIR_COLOURS, Identity
from .render import angle_of, ramp

MAP_SIZE = (512, 1024)
_TOP, _BOTTOM = 8.7, 4.8  # mesh units
_BEARD_STRENGTH = {"none": 0.12, "stubble": 0.45, "moustache": 0.85, "goatee": 0.85, "full": 0.88}
BEARD_DEPTH = {"none": 0.0, "stubble": 0.0, "moustache": 0.035, "goatee": 0.05, "full": 0.06}
"""Thickness of a beard above the skin, in units of the head frame."""

# How much each channel is dimmed by brown pigment, by blood, and by shadow.
_MELANIN, _BLOOD = np.array([0.7, 1.0, 1.25], np.float32), np.array([0.05, 0.40, 0.36], np.float32)


def paint_maps(identity: Identity) -> Array:
    """A person's maps, float32 [*MAP_SIZE, 4]: factors on the skin's colour (3 channels), and the beard's density."""
    rng = np.random.default_rng([3, identity.seed])
    angle, height = _places()
    pale = 1 - 0.6 * identity.skin_darkness
    melanin = 0.06 * noise(rng, 90) + 0.05 * noise(rng, 30) + 0.04 * (1 + identity.age) * noise(rng, 8)
    melanin += 0.03 * noise(rng, 2) + _spots(rng, identity)
    melanin *= 0.15 + 0.85 * ramp(height, 6.0, 6.4)  # under the chin the map is stretched
    flush = sum(_blob(angle - side, height - 6.95, 0.25, 0.17) for side in (-0.55, 0.55))
    blood = rng.uniform(0.1, 0.6) * flush + rng.uniform(0.1, 0.5) * _blob(angle, height - 6.93, 0.13, 0.10)
    blood = (blood + 0.12 * noise(rng, 18)) * pale
    tired = rng.uniform(0.1, 0.4) * sum(_blob(angle - side, height - 7.11, 0.13, 0.05) for side in (-0.33, 0.33))
    shade = melanin[..., None] * _MELANIN + blood[..., None] * _BLOOD + (tired + _lines(rng, identity))[..., None]
    strength = _BEARD_STRENGTH[identity.beard] if identity.male else 0
    grain = (0.9 + 0.14 * noise(rng, 1.5)).clip(0, 1)
    return np.dstack([np.exp(-shade), strength * grain]).astype(np.float32)


def look_up(maps: Array, rest: Array) -> Array:
    """Values [m, k] of maps at points on the base mesh, [m, 3] in mesh units."""
    rows = (_TOP - rest[:, 1]) / (_TOP - _BOTTOM) * MAP_SIZE[0]
    columns = (angle_of(rest) / (2 * np.pi) + 0.5) * MAP_SIZE[1]
    row, column = (values.astype(np.int32) for values in (rows, columns))
    return maps[row.clip(0, MAP_SIZE[0] - 1), column.clip(0, MAP_SIZE[1] - 1)]


def beard_share(identity: Identity, rest: Array) -> Array:
    """How much beard grows at points [..., 3] on the base mesh, 0 to 1; for shaved men, how much would."""
    side, height = abs(angle_of(rest)), rest[..., 1]
    # The throat is nearer to the neck's axis than chin and jaw.
    in_front = ramp(np.hypot(rest[..., 0], rest[..., 2] - 0.45), 0.52, 0.68)
    cheek = ramp(side, 0.28, 0.5) * ramp(side, 1.28, 1.05)
    cheek *= ramp(height - 0.32 * (side - 0.55).clip(0, 1), 6.75, 6.55)
    throat = ramp(height + 0.2 * side, 5.95, 6.1) * in_front
    chin = ramp(side, 0.45, 0.3) * ramp(height, 6.44, 6.36) * throat
    lip = ramp(side, 0.27, 0.2) * ramp(height + 0.2 * side, 6.66, 6.69) * ramp(height + 0.35 * side, 6.84, 6.79)
    corner = ramp(side, 0.2, 0.24) * ramp(side, 0.34, 0.29) * ramp(height, 6.72, 6.66) * ramp(height, 6.2, 6.3)
    if identity.beard == "moustache":
        return lip
    if identity.beard == "goatee":
        return np.maximum.reduce([chin * ramp(side, 0.32, 0.24), lip, corner])
    return np.maximum.reduce([cheek * throat, chin, lip, corner])


def beard_colour(identity: Identity) -> Array:
    """Linear RGB [3]: a little darker than the hair."""
    return np.array(HAIR_COLOURS[identity.hair_colour], np.float32) * 0.7


def noise(rng: np.random.Generator, cell: float, size: tuple[int, int] = MAP_SIZE) -> Array:
    """Smooth noise [size] of mean 0 and standard deviation 1 whose blobs are about ``cell`` pixels wide."""
    small = tuple(max(2, round(side / cell)) for side in size)
    coarse = rng.standard_normal(small)
    # Wrapped, since the map's edges join at the back of the head.
    at = [np.linspace(0, count, side, endpoint=False) for count, side in zip(small, size, strict=True)]
    fine = ndimage.map_coordinates(coarse, np.meshgrid(*at, indexing="ij"), order=1, mode="grid-wrap")
    return np.asarray((fine - fine.mean()) / max(fine.std(), 1e-6), np.float32)


def _places() -> tuple[Array, Array]:
    """Angle and height of each pixel of the map, both [*MAP_SIZE]."""
    rows, columns = MAP_SIZE
    angle = ((np.arange(columns) + 0.5) / columns - 0.5) * 2 * np.pi
    height = _TOP - (np.arange(rows) + 0.5) / rows * (_TOP - _BOTTOM)
    across, down = np.meshgrid(angle, height)
    return across.astype(np.float32), down.astype(np.float32)


def _blob(x: Array, y: Array, width: float, height: float) -> Array:
    return np.exp(-0.5 * ((x / width) ** 2 + (y / height) ** 2))


def _spots(rng: np.random.Generator, identity: Identity) -> Array:
    """Freckles and moles as pigment, [*MAP_SIZE]."""
    spots = np.zeros(MAP_SIZE, np.float32)
    rows, columns = MAP_SIZE
    freckles = int(identity.freckles * 700)
    angle = np.append(rng.normal(0, 0.42, freckles), rng.uniform(-0.9, 0.9, identity.moles))
    height = np.append(rng.normal(7.0, 0.16, freckles), rng.uniform(6.2, 7.9, identity.moles))
    amount = np.append(rng.uniform(1.5, 4.5, freckles), np.full(identity.moles, 45.0))
    row = ((_TOP - height) / (_TOP - _BOTTOM) * rows).astype(int).clip(0, rows - 1)
    column = ((angle / (2 * np.pi) + 0.5) * columns).astype(int) % columns
    np.add.at(spots, (row, column), amount)
    return ndimage.gaussian_filter(spots, 1.6)


def _lines(rng: np.random.Generator, identity: Identity) -> Array:
    """Wrinkles as shadow, [*MAP_SIZE]: across the forehead, beside the eyes, from the nose to the mouth."""
    angle, height = _places()
    side = abs(angle)
    lines = np.zeros(MAP_SIZE, np.float32)
    for step in range(3):
        middle = 7.76 + 0.09 * step + 0.02 * np.sin(5 * angle + rng.uniform(0, 6))
        lines += 0.8 * _blob(angle, height - middle, 0.35, 0.011)
    for step in range(3):
        slope = np.tan(-0.5 + 0.4 * step)
        lines += _blob(side - 0.67, height - (7.28 + (side - 0.58) * slope), 0.05, 0.010)
    fold = 6.86 - (side - 0.16) * 1.5
    lines += 1.3 * _blob(side - 0.25, height - fold, 0.06, 0.018)
    return 0.35 * max(identity.age - 0.2, 0) * lines * float(rng.uniform(0.6, 1.3))
