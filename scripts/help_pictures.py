"""python scripts/help_pictures.py [--all] [PICTURE ...]: the pictures of the README and the help pages.

Runs the nodes that they show on the miniature and on a photograph, and saves the results in web/docs/images. By default
only the pictures that are missing; names are those of the files, without what follows the dot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import base_directory
import environment
import hosts
import third_party
from demo import EXAMPLES, PHOTO_NAME, contact_sheet, fetch_images, make, save_photo
from demo import parse as parse_demo
from host_server import HostError, HostServer
from on_miniature import PEOPLE
from repository import ROOT
from sheets import scale, sheet
from studio import Link, Studio
from workflow import WorkflowError

if TYPE_CHECKING:
    from PIL import Image

IMAGES = ROOT / "web" / "docs" / "images"
QUALITY = 88
PHOTO, MIRRORED = "help_photo.png", "help_mirrored.png"
TWO_PEOPLE = next(example for example in EXAMPLES if example.workflow == "two_people_boxes")
PHOTO_NAMES = [PHOTO_NAME.format(number) for number in (1, 2)]
MIXES = (1, 0), (1, 1), (0, 1)
EDITED = {"preset": "surprised", "yaw": 30.0}
POSES: dict[str, dict[str, object]] = {
    "as is": {}, "yaw 30": {"yaw": 30.0}, "pitch -20": {"pitch": -20.0},
    "happy": {"preset": "happy"}, "surprised": {"preset": "surprised"}, "angry": {"preset": "angry"},
}  # fmt: skip


# --- the pictures ----------------------------------------------------------------------------------------------------


def activation_map(studio: Studio) -> Image.Image:
    """Two people in boxes, and where each of them acts."""
    faces: Link = []
    for box, name in zip(boxes_of(TWO_PEOPLE.path), PHOTO_NAMES, strict=True):
        face = [studio.encoded(studio.photo(name)), 0]
        before = {"placements": faces} if faces else {}
        faces = [studio.add("DynamicIDPlaceFace", face=face, **box, **before), 0]
    applied, sampler, decoder = studio.generated(faces, TWO_PEOPLE.prompt, TWO_PEOPLE.size)
    maps = studio.add("DynamicIDActivationMap", model=[applied, 0], latent=[sampler, 0], image=[decoder, 0])
    return studio.pictures(studio.preview([maps, 0]))[0]


def auto_layout(studio: Studio) -> Image.Image:
    """Three columns, two rows of five people, and two people as in a photograph."""
    face = [studio.encoded(studio.photo(PHOTO)), 0]

    def layout(people: int, kind: str, **inputs: object) -> str:
        faces = {f"face_{number}": face for number in range(1, people + 1)}
        return studio.preview([studio.add("DynamicIDAutoLayout", **faces, layout=kind, **inputs), 1])

    reference = {"reference_image": studio.photo(MIRRORED), "face_analysis": [studio.face_analysis, 0]}
    previews = layout(3, "equal columns"), layout(5, "rows"), layout(2, "as in the reference image", **reference)
    return sheet([[("", picture) for picture in studio.pictures(*previews)]], 345, caption=0)


def average_faces(studio: Studio) -> Image.Image:
    """Two people, and pictures of each of them and of the one between."""
    photos = [studio.photo(name) for name in PHOTO_NAMES]
    faces = [[studio.encoded(photo), 0] for photo in photos]
    shown = [studio.preview(photos[0])]
    for weights in MIXES:
        mixed = studio.add(
            "DynamicIDAverageFaces", face_1=faces[0], face_2=faces[1], weight_1=weights[0], weight_2=weights[1]
        )
        shown.append(studio.preview([studio.generated([mixed, 0])[2], 0]))
    shown.append(studio.preview(photos[1]))
    captions = ["Photo 1", *(f"weights {first} and {second}" for first, second in MIXES), "Photo 2"]
    return sheet([list(zip(captions, studio.pictures(*shown), strict=True))], 180)


def compare_faces(studio: Studio) -> Image.Image:
    """A photograph beside its mirror image, compared with the person in it."""
    compared = studio.add(
        "DynamicIDCompareFaces",
        image=studio.photo(MIRRORED), face_analysis=[studio.face_analysis, 0],
        face_1=[studio.encoded(studio.photo(PHOTO)), 0],
    )  # fmt: skip
    return studio.pictures(studio.preview([compared, 0]))[0]


def edit_face(studio: Studio) -> Image.Image:
    """What the IMR is given: keypoints and face prompt before and after."""
    before = studio.keypoints(studio.photo(PHOTO))
    after = studio.add("DynamicIDPoseKeypoints", keypoints=[before, 0], **EDITED)
    texts = [studio.add("PreviewAny", source=[node, 2]) for node in (before, after)]
    shown = [studio.preview([node, 1]) for node in (before, after)]
    history = studio.run()
    panels = []
    for when, text, node in zip(("before", "after"), texts, shown, strict=True):
        raster = fetch_images(studio.server, history, node)[-1]
        panels.append((f"{when}: {history['outputs'][text]['text'][0]}", raster))
    return sheet([panels], 440)


def edited_pictures(studio: Studio) -> Image.Image:
    """A person as in the photo, in another expression by words, and turned by keypoints."""
    face = [studio.encoded(studio.photo(PHOTO_NAMES[0])), 0]
    turned = studio.add("DynamicIDPoseKeypoints", face=face, yaw=30.0, smile=0.5)
    faces = (
        face,
        studio.edited(face, "in a happy expression"),
        studio.edited(face, "in a neutral expression, in side view", keypoints=[turned, 0]),
    )
    shown = [studio.preview([studio.generated(each)[2], 0]) for each in faces]
    return sheet([[("", picture) for picture in studio.pictures(*shown)]], 288, caption=0)


def encode_face(studio: Studio) -> Image.Image:
    """The previews of Encode Face."""
    previews = studio.preview([studio.encoded(studio.photo(PHOTO)), 1])
    return sheet([[("", picture) for picture in studio.pictures(previews)]], 400, gap=0, caption=0)


def face_keypoints(studio: Studio) -> Image.Image:
    """The previews of Face Keypoints."""
    previews = studio.preview([studio.keypoints(studio.photo(PHOTO)), 1])
    captions = "face found", "keypoints", "what the encoder sees"
    return sheet([list(zip(captions, studio.pictures(previews), strict=True))], 256)


def place_face(studio: Studio) -> Image.Image:
    """The boxes of a workflow, on an empty picture of its size."""
    import numpy as np
    from PIL import Image

    sys.path.insert(0, str(ROOT))
    from dynamicid_core.drawing import draw_layout
    from dynamicid_core.regions import Box

    boxes = [Box.at(**box) for box in boxes_of(TWO_PEOPLE.path)]
    return Image.fromarray(draw_layout(boxes, np.full((512, 768, 3), 40, np.uint8)))


def pose_keypoints(studio: Studio) -> Image.Image:
    """Keypoints before and after some edits, and what the keypoint encoder sees of them."""
    start = [studio.keypoints(studio.photo(PHOTO)), 0]
    shown = [
        studio.preview([studio.add("DynamicIDPoseKeypoints", keypoints=start, **edit), 1]) for edit in POSES.values()
    ]
    pictures = studio.pictures(*shown)
    return sheet([list(zip(POSES, row, strict=True)) for row in (pictures[::2], pictures[1::2])], 256)


def demo_sheet(studio: Studio) -> Image.Image:
    """The sheet of demo.py at half its size."""
    options = parse_demo([])
    whole = contact_sheet(EXAMPLES, [make(studio.server, example, None, options) for example in EXAMPLES])
    return scale(whole, whole.height // 2)


PICTURES: dict[str, Callable[[Studio], Image.Image]] = {
    "DynamicIDActivationMap.jpg": activation_map,
    "DynamicIDAutoLayout.jpg": auto_layout,
    "DynamicIDAverageFaces.jpg": average_faces,
    "DynamicIDCompareFaces.jpg": compare_faces,
    "DynamicIDEditFace.jpg": edit_face,
    "DynamicIDEditFace-pictures.jpg": edited_pictures,
    "DynamicIDEncodeFace.jpg": encode_face,
    "DynamicIDFaceKeypoints.jpg": face_keypoints,
    "DynamicIDPlaceFace.png": place_face,
    "DynamicIDPoseKeypoints.jpg": pose_keypoints,
    "demo.jpg": demo_sheet,
}
"""File name -> function."""


# --- helpers ---------------------------------------------------------------------------------------------------------


def boxes_of(path: Path) -> list[dict[str, float]]:
    """The boxes of a workflow's people, as inputs of Place Face."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    placed = [node["widgets_values"] for node in nodes if node["type"] == "DynamicIDPlaceFace"]
    return [dict(zip(("x", "y", "width", "height"), values[:4], strict=True)) for values in placed]


def provide_photos(folder: Path) -> None:
    """The photograph, the same beside its mirror image, and the two rendered people."""
    from PIL import Image, ImageOps

    for name, person in zip(PHOTO_NAMES, PEOPLE, strict=True):
        save_photo(person, folder / name)
    save_photo(third_party.sample_photo("astronaut"), folder / PHOTO)
    with Image.open(folder / PHOTO) as photo:
        both = Image.new("RGB", (2 * photo.width, photo.height))
        both.paste(photo, (0, 0))
        both.paste(ImageOps.mirror(photo), (photo.width, 0))
    both.save(folder / MIRRORED)


# --- the command -----------------------------------------------------------------------------------------------------


def make_all(names: list[str]) -> None:
    """Make pictures, on one server."""
    base = base_directory.prepare("help_pictures")
    base_directory.add_insightface_pack(base)
    provide_photos(base / "input")
    with HostServer(hosts.user_host() or hosts.ensure_host(), base) as server:
        studio = Studio(server)
        for name in names:
            begun = time.monotonic()
            PICTURES[name](studio).save(IMAGES / name, quality=QUALITY, optimize=True)
            print(f"{(IMAGES / name).relative_to(ROOT)}  {time.monotonic() - begun:.1f} s", flush=True)


def parse(arguments: list[str]) -> list[str]:
    """The pictures to make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="only these")
    parser.add_argument("--all", action="store_true", help="also those that exist")
    options = parser.parse_args(arguments)
    by_stem = {Path(name).stem: name for name in PICTURES}
    unknown = [name for name in options.pictures if name not in by_stem]
    if unknown:
        parser.error(f"there is no picture {unknown[0]}; there are {', '.join(by_stem)}")
    if options.all:
        return list(PICTURES)
    return [by_stem[name] for name in options.pictures] or [name for name in PICTURES if not (IMAGES / name).exists()]


def main(arguments: list[str]) -> int:
    """Exit code of the command. Runs itself again inside the environment."""
    names = parse(arguments)
    if not names:
        print("Every help page has its pictures.")
        return 0
    return environment.command(Path(__file__), arguments, lambda: make_all(names), HostError, WorkflowError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
