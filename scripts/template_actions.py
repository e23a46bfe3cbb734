"""How facial actions move the points: by the mesh that they are attached to, and as the detector sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from template_heads import GROUPS, POINTS, Array, Person, average_shape, see, view_of
from template_table import NOSE_BRIDGE

if TYPE_CHECKING:
    from dynamicid_core.face_analysis import FaceAnalysis
    from dynamicid_core.training.synthetic.mesh import HeadMesh

TRUSTED = 0.015  # units by which the detector wavers between two looks at one face
LIDS = ((41, 36), (40, 33), (42, 37), (96, 91), (94, 87), (95, 90))  # upper, lower
EYE_POINTS = [index for name, group in GROUPS.items() if "eye" in name or "pupil" in name for index in group]
UPPER_INNER_LIP, LOWER_INNER_LIP = (62, 66, 70), (54, 57, 60)

# Facial actions of the mesh, both sides of the face together.
ACTIONS: dict[str, dict[str, float]] = {
    "smile": {"mouthSmile": 1.0, "cheekSquint": 0.4, "mouthUpperUp": 0.2},
    "mouth_open": {"jawOpen": 1.0},
    "brow_raise": {"browInnerUp": 1.0, "browOuterUp": 1.0},
    "brow_lower": {"browDown": 1.2},
    "brow_inner_up": {"browInnerUp": 1.2},
    "eyes_closed": {"eyeBlink": 0.8},  # at 1 the upper lid covers the lower one
    "eyes_wide": {"eyeWide": 1.2},
    "mouth_frown": {"mouthFrown": 1.2},
    "nose_wrinkle": {"noseSneer": 1.2},
    "lip_stretch": {"mouthStretch": 1.2},
    "upper_lip_raise": {"mouthUpperUp": 1.2},
    "cheek_squint": {"cheekSquint": 1.0, "eyeSquint": 1.0},
    "lips_pressed": {"mouthPress": 1.0, "mouthRollUpper": 0.5, "mouthRollLower": 0.5},
}


def attach(mesh: HeadMesh, front: Array) -> Array:
    """The fine vertex [106] for each point: the nearest one of the surface that the point belongs to.

    front: [106, 3], the points seen from the front. Eye points go to the edges of the lids, pupils to the eyeballs, and
    those between the lips to the lip that the point belongs to; the jaw distinguishes the lips.
    """
    import numpy as np

    vertices = mesh.vertices(average_shape())
    jaw = mesh.displacements(average_shape(), {"jawOpen": 1.0})[:, 1]
    skin, eyes = mesh.material_mask("skin"), mesh.material_mask("eyes")
    margin = skin & (mesh.lids > 0.5)
    upper, lower = (mesh.lips > 0.2) & (jaw < 0.05), (mesh.lips > 0.2) & (jaw > 0.15)
    allowed = [skin & (vertices[:, 2] > 0)] * POINTS
    for index in range(POINTS):
        if index in GROUPS["left pupil"] + GROUPS["right pupil"]:
            allowed[index] = eyes
        elif index in GROUPS["left eye"] + GROUPS["right eye"]:
            allowed[index] = margin
        elif index in UPPER_INNER_LIP + LOWER_INNER_LIP:
            allowed[index] = upper if index in UPPER_INNER_LIP else lower
        elif index in GROUPS["mouth outer"] + GROUPS["mouth inner"]:
            allowed[index] = skin & (mesh.lips > 0.05)
    chosen = [np.flatnonzero(which) for which in allowed]
    # Seen from the front, depth says little: it counts less than the place in the picture.
    pairs = zip(chosen, front, strict=True)
    return np.array([rows[np.linalg.norm((vertices[rows] - p) * [1, 1, 0.3], axis=1).argmin()] for rows, p in pairs])


def action_weights(mesh: HeadMesh, name: str) -> dict[str, float]:
    """The mesh's actions that make one of ACTIONS."""
    from dynamicid_core.training.synthetic.mesh import both_sides

    return {side: weight for action, weight in ACTIONS[name].items() for side in both_sides(action, mesh)}


def mesh_actions(mesh: HeadMesh, shapes: Sequence[dict[str, float]], rows: Array) -> Array:
    """How far each action moves the vertices that stand for the points, mean over heads: [actions, 106, 3]."""
    import numpy as np

    moved = [[mesh.displacements(shape, action_weights(mesh, name))[rows] for name in ACTIONS] for shape in shapes]
    return np.mean(moved, axis=0)


def detected_actions(mesh: HeadMesh, analysis: FaceAnalysis, who: Person, tick: Any) -> Array:
    """How far the detector sees each action move a head's points, from the front: [actions, 106, 2], NaN if unseen."""
    import numpy as np

    view = view_of((0, 0, 0))
    _, neutral = see(mesh, analysis, who, mesh.vertices(who.shape), view)
    moved = []
    for name in ACTIONS:
        _, seen = see(mesh, analysis, who, mesh.vertices(who.shape, action_weights(mesh, name)), view)
        moved.append((seen - neutral).mean(axis=0) / view.scale)
        tick()
    return np.stack(moved)


def settle(by_mesh: Array, by_detector: Array, mirror: Array, front: Array) -> Array:
    """Displacements [actions, 106, 3]: the mesh's depth, and the place in the picture on which detector and mesh agree.

    Where they differ clearly the detector is right, since the points are what it finds; small differences are noise.
    """
    import numpy as np

    seen = np.nanmean(by_detector, axis=0)
    differ = np.linalg.norm(seen - by_mesh[..., :2], axis=-1, keepdims=True)
    share = ((differ - TRUSTED) / TRUSTED).clip(0, 1)
    # Without lashes the detector takes the fold above a closed eye for its lids.
    share[list(ACTIONS).index("eyes_closed"), EYE_POINTS] = 0
    settled = by_mesh.copy()
    settled[..., :2] += share * (seen - by_mesh[..., :2])
    for upper, lower in LIDS:  # do not pass each other
        settled[:, upper, 1] = np.minimum(
            settled[:, upper, 1], front[lower, 1] + settled[:, lower, 1] - front[upper, 1]
        )
    settled[:, NOSE_BRIDGE] = 0  # bone: only the skin over it wrinkles
    return ((settled + settled[:, mirror] * [-1, 1, 1]) / 2).astype(np.float32)
