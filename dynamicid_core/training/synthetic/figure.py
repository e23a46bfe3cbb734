"""A person made of meshes, built once and then moved into any pose."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation

from . import clothes, hair, people, skin
from .mesh import Array, HeadMesh
from .people import Identity
from .render import Colour, Look, normals, ramp, rotation

_PIVOT = np.array([0, 0.95, -0.15], np.float32)  # of the neck, in the head frame
_BODY_FOLLOWS = 0.45  # share of the head's yaw that the shoulders follow
_OCCLUSION_ROUNDS = 12
_OCCLUSION_GAIN = 9.0
# Corners of the face for the camera, in mesh units: forehead, chin, temples and cheeks, as face detectors box them.
_FACE_LOW, _FACE_HIGH, _FACE_BACK = 6.1, 7.95, 0.62
_PUPIL = 0.97  # cosine of the angle from the eye's axis


@dataclass(frozen=True, eq=False)
class Figure:
    """A built person. shape: weights. beard, cloth: [n], their thickness above the skin, units of the head frame.
    maps: see skin.paint_maps. hair: None for bald and buzz. face: [f], vertices that bound the face. landmarks: name
    -> vertices around it. smooth: sparse [n, n], the mean of each vertex's neighbours.
    """

    identity: Identity
    mesh: HeadMesh
    shape: dict[str, float]
    beard: Array
    cloth: Array
    maps: Array
    hair: hair.Hair | None
    look: Look
    face: Array
    landmarks: dict[str, Array]
    smooth: sparse.csr_matrix


@dataclass(frozen=True, eq=False)
class Posed:
    """A figure in a pose. body: [n, 3]. hair: [h, 3] or None. Both in the head frame of the unturned head. occlusion:
    [n], ambient occlusion, 0 to 1. skin: [n, 3], the body without beard and cloth.
    """

    body: Array
    hair: Array | None
    occlusion: Array
    skin: Array


def build(identity: Identity, mesh: HeadMesh) -> Figure:
    """Builds everything about a person that pose, expression and light do not change; takes about half a second."""
    shape = people.shape_of(identity, mesh)
    vertices = mesh.vertices(shape)
    on_skin = mesh.material_mask("skin")
    beard = np.where(on_skin, skin.beard_share(identity, mesh.rest) * skin.BEARD_DEPTH[identity.beard], 0)
    height = mesh.rest[:, 1]
    face = on_skin & (height > _FACE_LOW) & (height < _FACE_HIGH) & (mesh.rest[:, 2] > _FACE_BACK) & (mesh.ears < 0.2)
    return Figure(
        identity=identity,
        mesh=mesh,
        shape=shape,
        beard=beard.astype(np.float32),
        cloth=_cloth(identity, mesh),
        maps=skin.paint_maps(identity),
        hair=hair.grow(identity, mesh, vertices),
        look=_look(identity),
        face=np.flatnonzero(face),
        landmarks=_landmarks(mesh, on_skin),
        smooth=_neighbours(mesh),
    )


def change_clothes(figure: Figure, identity: Identity) -> Figure:
    """The figure in the clothes of an identity that is otherwise the same, see ``people.random_clothes``."""
    return replace(figure, identity=identity, cloth=_cloth(identity, figure.mesh))


def move(figure: Figure, actions: dict[str, float], pose: tuple[float, float, float]) -> Posed:
    """The figure with facial actions and the head in a pose, degrees: the neck bends, shoulders follow a little."""
    mesh = figure.mesh
    vertices = mesh.vertices(figure.shape, actions)
    outward = normals(vertices, mesh.triangles)
    surface = vertices + outward * (figure.beard + figure.cloth)[:, None]
    # The chest takes no part in the head's turn; eyes and teeth always do.
    with_head = _with_head(vertices)
    strands = None if figure.hair is None else bend(figure.hair.vertices, _with_head(figure.hair.vertices), pose)
    return Posed(
        body=bend(surface, with_head, pose),
        hair=strands,
        occlusion=_ambient_occlusion(figure, surface, outward),
        skin=bend(vertices, with_head, pose),
    )


def bend(points: Array, with_head: Array, pose: tuple[float, float, float]) -> Array:
    """Points [n, 3] turned around the neck, as far as each follows the head [n] (0: like the shoulders, 1: fully)."""
    shoulders = rotation((0, _BODY_FOLLOWS * pose[1], 0))
    onward = Rotation.from_matrix(rotation(pose) @ shoulders.T).as_rotvec()
    turned = Rotation.from_rotvec(with_head[:, None] * onward).apply((points - _PIVOT) @ shoulders.T)
    return (turned + _PIVOT).astype(np.float32)


def _cloth(identity: Identity, mesh: HeadMesh) -> Array:
    return np.where(mesh.material_mask("skin"), clothes.thickness(identity, mesh.rest), 0).astype(np.float32)


def _with_head(points: Array) -> Array:
    return ramp(points[:, 1] - 0.35 * points[:, 2], 1.75, 0.55)


def _ambient_occlusion(figure: Figure, surface: Array, outward: Array) -> Array:
    """Ambient occlusion [n]: vertices that lie lower than their surroundings get less light."""
    around = surface
    for _ in range(_OCCLUSION_ROUNDS):
        around = figure.smooth @ around
    return (_OCCLUSION_GAIN * ((around - surface) * outward).sum(axis=1)).clip(0, 1).astype(np.float32)


def _landmarks(mesh: HeadMesh, on_skin: Array) -> dict[str, Array]:
    """The five points by which faces are aligned; left and right are the picture's."""
    rest, lips = mesh.rest, np.flatnonzero(mesh.lips > 0.45)
    eyes = np.flatnonzero(mesh.material_mask("eyes"))
    middle = np.flatnonzero(on_skin & (abs(rest[:, 0]) < 0.03) & (abs(rest[:, 1] - 6.92) < 0.1))
    across = mesh.vertices({})[eyes, 0]
    seen = rest[eyes, 2] > _PUPIL  # of eyes rest is a direction
    return {
        "left eye": eyes[seen & (across < 0)],
        "right eye": eyes[seen & (across > 0)],
        "nose": middle[[rest[middle, 2].argmax()]],
        "left mouth corner": lips[[rest[lips, 0].argmin()]],
        "right mouth corner": lips[[rest[lips, 0].argmax()]],
    }


def _neighbours(mesh: HeadMesh) -> sparse.csr_matrix:
    sides = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    both = np.concatenate([sides, sides[:, ::-1]])
    count = len(mesh.rest)
    matrix = sparse.csr_matrix((np.ones(len(both), np.float32), (both[:, 0], both[:, 1])), (count, count))
    matrix.data[:] = 1  # an edge of two triangles counts once
    total = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1)
    return (sparse.diags((1 / total).astype(np.float32)) @ matrix).tocsr()


def _look(identity: Identity) -> Look:
    hair_colour = people.HAIR_COLOURS[identity.hair_colour]
    return Look(
        skin=identity.skin,
        lips=identity.lips,
        brows=_scaled_colour(0.55, hair_colour, most=0.3),
        iris=people.EYE_COLOURS[identity.eye_colour],
        hair=None if identity.hair_style == "bald" else _scaled_colour(0.8, hair_colour),
        brow_thickness=identity.brow_thickness,
        brow_arch=identity.brow_arch,
        hairline=identity.hairline,
    )


def _scaled_colour(factor: float, colour: Colour, most: float = 1.0) -> Colour:
    """A colour with its channels clipped at ``most``, then multiplied."""
    red, green, blue = (factor * min(channel, most) for channel in colour)
    return red, green, blue
