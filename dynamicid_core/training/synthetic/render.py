"""A renderer of heads: z-buffered triangles, a key light without shadows, paint for skin, brows, eyes and hair."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...images import Photo
from .mesh import MATERIALS, Array, HeadMesh

SKIN, MOUTH, EYES, TEETH, TONGUE, LASHES = range(len(MATERIALS))

Colour = tuple[float, float, float]

# Mesh units of the base mesh, see HeadMesh.rest: the axis around which places on the face are counted as angles.
_AXIS = 0.45
# Angles from the eye's own axis, radians.
_PUPIL, _IRIS = 0.20, 0.50
_GAMMA = 2.2


@dataclass(frozen=True)
class View:
    """A weak-perspective camera: pixel = scale * (R @ X)[:2] + centre.

    pose: pitch, yaw, roll in degrees. scale: pixels per unit of the head frame. centre: the projection of the head's
    origin, pixels (x, y); whole numbers are pixel centres. size: height, width in pixels.
    """

    pose: tuple[float, float, float]
    scale: float
    centre: tuple[float, float]
    size: tuple[int, int]

    def project(self, points: Array) -> Array:
        """Points [..., 3] of the head frame -> pixels (x, y) and depth in pixels toward the viewer, [..., 3]."""
        return points @ rotation(self.pose).T * self.scale + np.array([*self.centre, 0], np.float32)

    def unproject(self, pixels: Array) -> Array:
        """The inverse of ``project``, [..., 3]."""
        return (pixels - np.array([*self.centre, 0], np.float32)) / self.scale @ rotation(self.pose)

    def finer(self, times: int) -> "View":
        """The same view with ``times`` as many pixels in each direction."""
        x, y = ((c + 0.5) * times - 0.5 for c in self.centre)
        return View(self.pose, self.scale * times, (x, y), (self.size[0] * times, self.size[1] * times))


def rotation(pose: tuple[float, float, float] | Array) -> NDArray[np.float32]:
    """Rz(roll) @ Ry(yaw) @ Rx(pitch), [3, 3], InsightFace's convention of a pose. Degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(pose)), np.sin(np.radians(pose))
    pitch = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    roll = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (roll @ yaw @ pitch).astype(np.float32)


@dataclass(frozen=True)
class Look:
    """The colours of a head, linear RGB 0 to 1. hair: None is bald. brow_arch: 0 is flat, 1 high; below 0 the
    middle is lower than the ends. hairline: how much higher than usual, mesh units.
    """

    skin: Colour = (0.62, 0.40, 0.29)
    lips: Colour = (0.40, 0.14, 0.12)
    brows: Colour = (0.05, 0.03, 0.02)
    iris: Colour = (0.12, 0.07, 0.04)
    hair: Colour | None = (0.04, 0.025, 0.02)
    brow_thickness: float = 0.9
    brow_arch: float = 0.5
    hairline: float = 0.0


@dataclass(frozen=True)
class Light:
    """A key light from a direction (x right, y down, z toward the viewer), ambient light, and the background."""

    direction: tuple[float, float, float] = (-0.4, -0.6, 0.7)
    key: float = 0.75
    ambient: float = 0.45
    background: Colour = (0.30, 0.34, 0.38)


@dataclass(frozen=True, eq=False)
class Surface:
    """A rasterised surface. triangle: [H, W], -1 for none. weights: [H, W, 3] of its corners. depth: [H, W] in pixels
    toward the viewer, -inf for none.
    """

    triangle: NDArray[np.int32]
    weights: NDArray[np.float32]
    depth: NDArray[np.float32]

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Where there is a head, [H, W]."""
        return self.triangle >= 0

    def mix(self, triangles: Array, values: Array) -> Array:
        """Interpolates values at vertices [n, k] at the visible pixels [m, k], in the order of ``visible``."""
        corners = triangles[self.triangle[self.visible]]
        return np.einsum("mc,mck->mk", self.weights[self.visible], values[corners])


def rasterise(pixels: Array, triangles: Array, size: tuple[int, int], *, cull: Array) -> Surface:
    """Rasterises the nearest triangle of each pixel. pixels: [n, 3] from ``View.project``. cull: [t], whether a
    triangle is visible only from its front.
    """
    corners = pixels[triangles].astype(np.float32)
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = _cross(b - a, c - a)
    low = np.maximum(np.ceil(corners[..., :2].min(axis=1)), 0).astype(np.int32)
    high = np.minimum(np.floor(corners[..., :2].max(axis=1)), np.array(size[::-1]) - 1).astype(np.int32)
    span = (high - low + 1).clip(0)
    shown = (area != 0) & ~(cull & (area < 0)) & (span.min(axis=1) > 0)
    index = np.flatnonzero(shown)

    count = span[index].prod(axis=1)
    which = index.repeat(count)
    step = np.arange(len(which)) - (np.cumsum(count) - count).repeat(count)
    width = span[which, 0]
    x, y = low[which, 0] + step % width, low[which, 1] + step // width
    point = np.stack([x, y], axis=1).astype(np.float32)
    w1 = _cross(point - a[which, :2], c[which, :2] - a[which, :2]) / area[which]
    w2 = _cross(b[which, :2] - a[which, :2], point - a[which, :2]) / area[which]
    weights = np.stack([1 - w1 - w2, w1, w2], axis=1)
    inside = (weights >= -1e-5).all(axis=1)
    which, weights, place = which[inside], weights[inside], (y * size[1] + x)[inside]

    z = np.einsum("mc,mc->m", weights, corners[which, :, 2])
    depth = np.full(size[0] * size[1], -np.inf, np.float32)
    np.maximum.at(depth, place, z)
    front = z == depth[place]
    triangle = np.full(depth.shape, -1, np.int32)
    mixed = np.zeros((*depth.shape, 3), np.float32)
    triangle[place[front]], mixed[place[front]] = which[front], weights[front]
    return Surface(triangle.reshape(size), mixed.reshape(*size, 3), depth.reshape(size))


def _cross(a: Array, b: Array) -> Array:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def surface(mesh: HeadMesh, vertices: Array, view: View) -> Surface:
    """The surface of a head with vertices [n, 3] in the head frame."""
    # Lashes are strips of cards that look like a mask without transparency.
    shown = np.flatnonzero(mesh.materials != LASHES)
    seen = rasterise(view.project(vertices), mesh.triangles[shown], view.size, cull=mesh.materials[shown] == SKIN)
    return Surface(np.where(seen.visible, shown[seen.triangle], -1), seen.weights, seen.depth)


def normals(vertices: Array, triangles: Array) -> Array:
    """Outward unit normals at vertices, [n, 3]. Triangles are clockwise as seen from outside."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    total = np.stack(
        [np.bincount(triangles.ravel(), face[:, k].repeat(3), len(vertices)) for k in range(3)], axis=1
    ).astype(np.float32)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)


def render(
    mesh: HeadMesh, vertices: Array, view: View, look: Look | None = None, light: Light | None = None, samples: int = 2
) -> Photo:
    """A picture [H, W, 3]. samples: pixels in each direction that are averaged into one."""
    fine = view.finer(samples)
    seen = surface(mesh, vertices, fine)
    return shade(mesh, vertices, fine, seen, look or Look(), light or Light(), samples)


def shade(
    mesh: HeadMesh, vertices: Array, view: View, seen: Surface, look: Look, light: Light, samples: int = 1
) -> Photo:
    """Paints and lights a surface, averaging ``samples`` pixels in each direction: [H, W, 3]."""
    material = mesh.materials[seen.triangle[seen.visible]]
    places = seen.mix(mesh.triangles, np.column_stack([mesh.rest, mesh.lips, mesh.ears, mesh.lids]))
    outward = seen.mix(mesh.triangles, normals(vertices, mesh.triangles) @ rotation(view.pose).T)
    linear = np.empty((*seen.visible.shape, 3), np.float32)
    linear[:] = light.background
    linear[seen.visible] = paint(material, places, look) * _lit(outward, material, light)[:, None]
    height, width = seen.visible.shape
    linear = linear.reshape(height // samples, samples, width // samples, samples, 3).mean(axis=(1, 3))
    return (linear.clip(0, 1) ** (1 / _GAMMA) * 255).round().astype(np.uint8)


def paint(material: Array, places: Array, look: Look) -> Array:
    """Colours [m, 3], linear RGB. places: [m, 6], HeadMesh.rest and the masks for lips, ears and lids."""
    rest, lips, ears, lids = places[:, :3], *places[:, 3:].T
    colours = np.array([look.skin, (0.10, 0.02, 0.02), (0.62, 0.58, 0.55), (0.70, 0.65, 0.55), (0.40, 0.14, 0.13),
                        look.brows], np.float32)[material]  # fmt: skip
    skin, eyes = material == SKIN, material == EYES
    colours[skin] = over(colours[skin], look.lips, 0.85 * ramp(lips[skin], 0.3, 0.6))
    colours[skin] = over(colours[skin], look.brows, _brows(rest[skin], look))
    colours[skin] = over(colours[skin], look.brows, 0.75 * lids[skin])
    if look.hair is not None:
        colours[skin] = over(
            colours[skin], look.hair, scalp(rest[skin], look.hairline) * (1 - ramp(ears[skin], 0.1, 0.4))
        )
    colours[eyes] = over(colours[eyes], look.iris, 1 - ramp(_from_axis(rest[eyes]), _IRIS - 0.03, _IRIS + 0.03))
    colours[eyes] = over(colours[eyes], (0, 0, 0), 1 - ramp(_from_axis(rest[eyes]), _PUPIL - 0.03, _PUPIL + 0.03))
    return colours


def _lit(outward: Array, material: Array, light: Light) -> Array:
    """The light that each point reflects, [m]."""
    outward = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    # Two-sided triangles are lit on the visible side.
    outward = np.where(outward[:, 2:] < 0, -outward, outward)
    direction = np.array(light.direction) / np.linalg.norm(light.direction)
    # On skin, light wraps around the edge of the shadow; less light comes from below than from above.
    wrapped = ((outward @ direction + 0.25) / 1.25).clip(0)
    ambient = light.ambient * (0.8 - 0.2 * outward[:, 1])
    return (ambient + light.key * wrapped) * np.where(material == MOUTH, 0.5, 1)


def over(below: Array, colour: Colour | Array, share: Array) -> Array:
    """Colours [m, 3] blended with another one by share [m]."""
    return below + share[:, None] * (np.array(colour, np.float32) - below)


def ramp(value: Array, start: float | Array, end: float | Array) -> Array:
    """A smooth step: 0 up to the start, 1 from the end on. The end may be less than the start."""
    t = ((value - start) / (end - start)).clip(0, 1)
    return t * t * (3 - 2 * t)


def angle_of(rest: Array) -> Array:
    """The angle of points [..., 3] of the base mesh around the head: radians from the front, to the picture's right."""
    return np.arctan2(rest[..., 0], rest[..., 2] - _AXIS)


def _from_axis(direction: Array) -> Array:
    return np.arctan2(np.hypot(direction[:, 0], direction[:, 1]), direction[:, 2])


def _brows(rest: Array, look: Look) -> Array:
    """How much brow covers points on the skin: an arch, thick at the nose and thin at the temple."""
    angle = abs(angle_of(rest))
    along = (angle - 0.105) / 0.475
    arch = np.sin((along / 0.68).clip(0, 1.47) * np.pi / 2)
    middle = 7.475 + (0.02 + 0.07 * look.brow_arch) * arch - 0.03 * ramp(along, 0.7, 1)
    half = 0.05 * look.brow_thickness * (1 - 0.75 * ramp(along, 0.35, 1)) * (0.6 + 0.4 * ramp(along, 0, 0.25))
    off = abs(rest[:, 1] - middle) / half
    ends = ramp(along, -0.03, 0.04) * (1 - ramp(along, 0.97, 1.03))
    return 0.9 * (1 - ramp(off, 0.7, 1.2)) * ends * (rest[:, 2] > _AXIS)


_HAIRLINE_ANGLES = (0, 0.45, 0.78, 0.98, 1.15, 1.30, 1.42, 1.60, 1.95, 2.40, np.pi)
_HAIRLINE_HEIGHTS = (7.99, 8.0, 7.9, 7.66, 7.42, 7.05, 7.1, 7.35, 6.85, 6.5, 6.42)


def scalp(rest: Array, hairline: float = 0.0) -> Array:
    """How much painted short hair covers points [m, 3] on the skin, 0 to 1. hairline: as in Look."""
    angle = abs(angle_of(rest))
    height = np.interp(angle, _HAIRLINE_ANGLES, _HAIRLINE_HEIGHTS) + hairline * ramp(angle, 1.15, 0.8)
    return ramp(rest[:, 1] - height, -0.04, 0.04)
