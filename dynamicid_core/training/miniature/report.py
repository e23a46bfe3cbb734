"""The tables and pictures of the miniature's model card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...images import Photo
from . import measure
from .bench import SETTINGS
from .measure import Finding

_COLUMNS = {
    "own": "FaceSim",
    "others": "to others",
    "auc": "AUC",
    "auc in a picture": "AUC in a picture",
    "found": "found",
    "expression": "Expr",
    "pose": "Pose",
    "clothes": "clothes",
    "background": "background",
}
_SIDES = {"pose to the right": "Pose to the right", "pose to the left": "Pose to the left"}
_TO_ORIGINAL = {"to the original": "to the same picture"}
_SEVERAL = {
    "nearest": "right person nearest",
    **{name: title for name, title in _COLUMNS.items() if name != "clothes"},
    "crowded": "faces too many",
}


def tables(
    ceilings: dict[str, dict[str, float]], findings: Sequence[Finding], steps: Sequence[dict[str, Any]], few: int
) -> str:
    """Markdown tables: ceilings, one person, several people, few steps. few: pictures per row of the last."""
    parts = ["### Ceilings: pictures of the data, people never seen", ""]
    parts += _table(ceilings, _COLUMNS | _TO_ORIGINAL)
    for number in sorted({one.people for one in findings}):
        of_number = [one for one in findings if one.people == number]
        rows = {
            setting.label: measure.summary([one for one in of_number if one.setting == setting.label])
            for setting in SETTINGS
        }
        count = len(of_number) // len(SETTINGS) // number
        who = "One person" if number == 1 else f"{number} people side by side"
        parts += ["", f"### {who}, {count} pictures a row", ""]
        parts += _table(rows, (_COLUMNS if number == 1 else _SEVERAL) | _SIDES)
    parts += ["", f"### Few steps, one person as the photo shows them, {few} pictures a row", ""]
    rows = {f"{row['sampler']}, {row['steps']} steps": row for row in steps}
    parts += _table(rows, {k: title for k, title in _COLUMNS.items() if k not in ("expression", "pose")})
    return "\n".join(parts) + "\n"


def _table(rows: dict[str, dict[str, float]], columns: dict[str, str]) -> list[str]:
    head = ["", *columns.values()]
    lines = [head, ["---"] * len(head)]
    lines += [[label, *(f"{row[name]:.3f}" if name in row else "" for name in columns)] for label, row in rows.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def draw_steps(steps: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots similarity and separation by number of steps, for each sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for place, (name, title) in enumerate((("own", "FaceSim to the person"), ("auc", "AUC, person against others")), 1):
        axes = figure.add_subplot(1, 2, place)
        for sampler in dict.fromkeys(row["sampler"] for row in steps):
            rows = [row for row in steps if row["sampler"] == sampler]
            axes.plot([row["steps"] for row in rows], [row[name] for row in rows], marker="o", label=sampler)
        axes.set_xlabel("steps")
        axes.set_title(title)
        axes.legend()
    figure.savefig(path, dpi=100)


def sheet(rows: Sequence[tuple[str, Sequence[Photo]]], path: Path) -> None:
    """Saves rows of pictures, each with a title above it."""
    title, margin = 22, 6
    height = max(photo.shape[0] for _, photos in rows for photo in photos)
    width = max(sum(photo.shape[1] + margin for photo in photos) for _, photos in rows)
    board = Image.new("RGB", (width + margin, len(rows) * (title + height + margin)), "white")
    draw, font = ImageDraw.Draw(board), ImageFont.load_default(14)
    for number, (text, photos) in enumerate(rows):
        top = number * (title + height + margin)
        draw.text((margin, top + title / 2), text, fill="black", font=font, anchor="lm")
        left = margin
        for photo in photos:
            board.paste(Image.fromarray(photo), (left, top + title))
            left += photo.shape[1] + margin
    board.save(path, quality=88)


def read_pictures(folder: Path, number: int, setting: int, count: int) -> list[Photo]:
    """The first pictures that ``measure.measure`` saved in the folder."""
    files = sorted(folder.glob(f"{number}-{setting}-*.png"))[:count]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def save_figures(ceilings: Any, findings: Sequence[Finding], steps: Any, path: Path) -> None:
    """Saves all figures as JSON."""
    rows = {
        f"{number} people, {setting.label}": measure.summary(
            [one for one in findings if one.people == number and one.setting == setting.label]
        )
        for number in sorted({one.people for one in findings})
        for setting in SETTINGS
    }
    path.write_text(json.dumps({"ceilings": ceilings, "pictures": rows, "steps": steps}, indent=1), encoding="utf-8")
