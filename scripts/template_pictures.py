"""Pictures of the face template: one to look at, and heads in known poses for the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repository import ROOT
from template_actions import ACTIONS, attach
from template_heads import GROUPS, PITCHES, YAWS, Array, average_shape, lights, look_of, view_of
from template_table import front_of

if TYPE_CHECKING:
    from dynamicid_core.training.synthetic.mesh import HeadMesh

PREVIEW = ROOT / "output" / "face_template.png"

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


def make_pictures(source: Path, template: Path, folder: Path) -> None:
    """Heads that the template was not made from, in known poses, with the true places of the 106 and the 68 points."""
    import numpy as np
    from PIL import Image
    from safetensors.numpy import load_file

    from dynamicid_core.training.synthetic import mesh as meshes
    from dynamicid_core.training.synthetic import render

    mesh = meshes.read_mesh(source)
    rows = attach(mesh, front_of(load_file(template)["points"]))
    rows_68 = attach_68(mesh, rows)
    generator = np.random.default_rng(TEST_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, (name, pose) in enumerate({**TEST_POSES, **AVERAGE_POSES}.items()):
        shape = average_shape() if name in AVERAGE_POSES else meshes.random_person(generator)
        race = np.eye(3)[number % 3]
        vertices, view = mesh.vertices(shape), view_of(pose, TEST_SIZE, TEST_SCALE)
        picture = render.render(mesh, vertices, view, look_of(race, 0.3), lights()[number % 2])
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
    skin = np.flatnonzero(mesh.material_mask("skin"))
    return np.array([skin[np.linalg.norm(vertices[skin] - point, axis=1).argmin()] for point in laid])
