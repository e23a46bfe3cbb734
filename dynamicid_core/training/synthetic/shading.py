"""Renders a figure: skin, eyes, clothes and hair under a key light with shadows, and ambient light."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from . import clothes, skin
from .figure import Figure, Posed
from .hair import Hair
from .mesh import Array
from .people import HAIR_COLOURS, Identity
from .render import EYES, LASHES, MOUTH, SKIN, Surface, View, normals, over, paint, ramp, rasterise

_SHADOW_SIZE = 256
_SHADOW_REACH = 2.6  # radius of the shadow map around the head, units of the head frame
_SHADOW_BIAS = 0.05
# How far light wraps around into the shadow on skin, by channel: red furthest.
_WRAP = np.array([0.35, 0.25, 0.20], np.float32)
_MATERIAL_GLOSS = {SKIN: (0.10, 14.0), EYES: (0.9, 300.0)}  # strength, and sharpness of the reflection


@dataclass(frozen=True)
class Lamp:
    """direction: x right, y down, z toward the viewer. key, ambient: strengths. warmth: -1, blue, to 1, orange."""

    direction: tuple[float, float, float] = (-0.4, -0.6, 0.7)
    key: float = 0.75
    ambient: float = 0.45
    warmth: float = 0.0

    @property
    def towards(self) -> Array:
        """The unit vector of the direction, [3]."""
        return np.array(self.direction, np.float32) / np.linalg.norm(self.direction).astype(np.float32)

    @property
    def key_colour(self) -> Array:
        """Linear RGB [3]."""
        return self.key * np.array([1 + 0.25 * self.warmth, 1, 1 - 0.3 * self.warmth], np.float32)


@dataclass(frozen=True, eq=False)
class Layer:
    """A figure without background. colour: [H, W, 3] linear RGB times cover. cover: [H, W], 0 to 1."""

    colour: Array
    cover: Array

    def onto(self, below: Array) -> Array:
        """Composites the layer over linear RGB [H, W, 3]."""
        return self.colour + below * (1 - self.cover)[..., None]


def draw(figure: Figure, posed: Posed, view: View, lamp: Lamp) -> Layer:
    """Renders the posed figure in a view, whose own pose must be 0."""
    mesh = figure.mesh
    shadows = _Shadows(figure, posed, lamp)
    shown = np.flatnonzero(mesh.materials != LASHES)
    body = rasterise(
        view.project(posed.body), mesh.triangles[shown], view.size, cull=np.isin(mesh.materials[shown], (SKIN, EYES))
    )
    body = Surface(np.where(body.visible, shown[body.triangle], -1), body.weights, body.depth)
    colour = np.zeros((*view.size, 3), np.float32)
    colour[body.visible] = _shade_body(figure, posed, body, lamp, shadows)
    cover = body.visible.astype(np.float32)
    if figure.hair is not None and posed.hair is not None:
        nearest = body.depth
        for triangles in (figure.hair.triangles, figure.hair.ends):
            strands = rasterise(view.project(posed.hair), triangles, view.size, cull=np.zeros(len(triangles), bool))
            lit, share = _shade_hair(figure.hair, figure.identity, posed.hair, triangles, strands, lamp, shadows)
            share = (share * (strands.depth > nearest)[strands.visible])[:, None]
            colour[strands.visible] += share * (lit - colour[strands.visible])
            cover[strands.visible] = np.maximum(cover[strands.visible], share[:, 0])
            nearest = np.maximum(nearest, strands.depth)
    return Layer(colour, cover)


def develop(linear: Array, samples: int, grain: Array | None = None) -> Array:
    """Linear RGB -> picture uint8, ``samples`` pixels in each direction averaged. grain: added noise [H, W, 1]."""
    height, width = linear.shape[:2]
    averaged = linear.reshape(height // samples, samples, width // samples, samples, 3).mean(axis=(1, 3))
    # A soft shoulder instead of clipped highlights.
    toned = (averaged * (1 + 0.10 * averaged) / (1 + 0.30 * averaged)).clip(0, 1) ** (1 / 2.2)
    return ((toned if grain is None else toned + grain).clip(0, 1) * 255).round().astype(np.uint8)


class _Shadows:
    """The shadow map of the key light."""

    def __init__(self, figure: Figure, posed: Posed, lamp: Lamp) -> None:
        towards = lamp.towards
        right = np.cross(np.array([0, 1, 0.01], np.float32), towards)
        right /= np.linalg.norm(right)
        self._axes = np.stack([right, np.cross(towards, right), towards]).astype(np.float32)
        scale = _SHADOW_SIZE / 2 / _SHADOW_REACH
        self._scale = np.array([scale, scale, 1], np.float32)
        points = [posed.body] if posed.hair is None else [posed.body, posed.hair]
        triangles = [figure.mesh.triangles[figure.mesh.materials == SKIN]]
        if posed.hair is not None and figure.hair is not None:
            triangles += [part + len(posed.body) for part in (figure.hair.triangles, figure.hair.ends)]
        joined = np.concatenate(triangles)
        seen = rasterise(
            self._project(np.concatenate(points)), joined, (_SHADOW_SIZE,) * 2, cull=np.zeros(len(joined), bool)
        )
        self._depth = seen.depth

    def lit(self, points: Array) -> Array:
        """How much of the key light reaches points [m, 3], 0 to 1, soft at the edges."""
        x, y, depth = self._project(points).T
        total = np.zeros(len(points), np.float32)
        for down in (-0.75, 0.75):
            for across in (-0.75, 0.75):
                column, row = (x + across).round().astype(np.int32), (y + down).round().astype(np.int32)
                nearest = self._depth[row.clip(0, _SHADOW_SIZE - 1), column.clip(0, _SHADOW_SIZE - 1)]
                total += ramp(nearest - depth, 2 * _SHADOW_BIAS, _SHADOW_BIAS)
        return total / 4

    def _project(self, points: Array) -> Array:
        return points @ self._axes.T * self._scale + np.array([_SHADOW_SIZE / 2, _SHADOW_SIZE / 2, 0], np.float32)


def _shade_body(figure: Figure, posed: Posed, seen: Surface, lamp: Lamp, shadows: _Shadows) -> Array:
    """Linear RGB at the visible pixels, [m, 3]."""
    mesh = figure.mesh
    values = [mesh.rest, mesh.lips, mesh.ears, mesh.lids, posed.occlusion, posed.body,
              normals(posed.body, mesh.triangles)]  # fmt: skip
    mixed = seen.mix(mesh.triangles, np.column_stack(values).astype(np.float32))
    places, occlusion, points, outward = mixed[:, :6], mixed[:, 6], mixed[:, 7:10], mixed[:, 10:]
    outward = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    outward = np.where(outward[:, 2:] < 0, -outward, outward)
    material = mesh.materials[seen.triangle[seen.visible]]
    albedo, gloss, sharpness = _albedo(figure, material, places)
    direct = ((outward @ lamp.towards)[:, None] + _WRAP).clip(0) / (1 + _WRAP) * shadows.lit(points)[:, None]
    halfway = lamp.towards + np.array((0, 0, 1), np.float32)
    reflected = (outward @ (halfway / np.linalg.norm(halfway))).clip(0) ** sharpness * gloss
    reflected *= shadows.lit(points)
    ambient = lamp.ambient * (0.8 - 0.25 * outward[:, 1]) * (1 - 0.75 * occlusion)
    ambient = np.where(material == MOUTH, 0.4 * ambient, ambient)
    return albedo * (ambient[:, None] + direct * lamp.key_colour) + reflected[:, None] * lamp.key_colour


def _albedo(figure: Figure, material: Array, places: Array) -> tuple[Array, Array, Array]:
    """Colour [m, 3], and strength [m] and sharpness [m] of reflections, at points."""
    identity, rest = figure.identity, places[:, :3]
    colours = paint(material, places, figure.look)
    gloss, sharpness = (np.full(len(material), value, np.float32) for value in (0.03, 10.0))
    for kind, (strength, sharp) in _MATERIAL_GLOSS.items():
        gloss[material == kind], sharpness[material == kind] = strength, sharp
    on_skin = np.flatnonzero(material == SKIN)
    maps = skin.look_up(figure.maps, rest[on_skin])
    painted = colours[on_skin] * maps[:, :3]
    beard = maps[:, 3] * skin.beard_share(identity, rest[on_skin]) if identity.male else maps[:, 3]
    painted = over(painted, skin.beard_colour(identity), beard)
    cloth = clothes.cover(identity, rest[on_skin])[:, None]
    colours[on_skin] = painted + cloth * (clothes.paint(identity, rest[on_skin]) - painted)
    gloss[on_skin] *= (1 - cloth[:, 0]) * (1 - beard)
    return colours, gloss, sharpness


def _shade_hair(
    hair: Hair, identity: Identity, points: Array, triangles: Array, seen: Surface, lamp: Lamp, shadows: _Shadows
) -> tuple[Array, Array]:
    """Linear RGB [m, 3] and cover [m] at the visible pixels. points: [h, 3], the posed hair."""
    every = np.concatenate([hair.triangles, hair.ends])
    mixed = seen.mix(triangles, np.column_stack([hair.places, points, normals(points, every)]).astype(np.float32))
    bright, cover = hair.look_up(mixed[:, :2]).T
    outward = mixed[:, 5:] / np.maximum(np.linalg.norm(mixed[:, 5:], axis=1, keepdims=True), 1e-9)
    outward = np.where(outward[:, 2:] < 0, -outward, outward)
    colour = np.array(HAIR_COLOURS[identity.hair_colour], np.float32) * bright[:, None]
    lit = shadows.lit(mixed[:, 2:5])
    direct = (outward @ lamp.towards + 0.3).clip(0) / 1.3 * lit
    halfway = lamp.towards + np.array((0, 0, 1), np.float32)
    # Strands run down, so their reflection is a band across the head.
    sheen = (outward @ (halfway / np.linalg.norm(halfway))).clip(0) ** 12 * lit * bright**2
    ambient = lamp.ambient * (0.8 - 0.25 * outward[:, 1])
    shade = ambient[:, None] + direct[:, None] * lamp.key_colour
    return colour * shade + (0.02 + 0.25 * colour) * sheen[:, None] * lamp.key_colour, cover


def blurred(picture: Array, sigma: float) -> Array:
    """A picture [H, W, 3] out of focus; sigma in pixels."""
    return np.asarray(ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="nearest"))
