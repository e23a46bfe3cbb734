"""Run the whole pack: photographs in, pictures of those people out.

Sets up what is needed on first use, starts ComfyUI without a window, runs shipped workflows and writes the pictures and
a contact sheet to output/. By default on the miniature, the small model that comes with the pack: one person as in the
photo, smiling, and turned, and two people in boxes. With COMFYUI_PATH set to a ComfyUI that has models for it, one
picture with those.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import base_directory
import environment
import hosts
import third_party
from host_server import HostError, HostServer, Prompt
from model_files import Weights, find_weights
from on_miniature import PEOPLE, ask_miniature, nodes_of, set_inputs, set_text, the_node, use_miniature
from repository import ROOT, SetupError
from sheets import sheet
from workflow import WorkflowError, to_api

if TYPE_CHECKING:
    from PIL import Image

OUTPUT = ROOT / "output"
SHEET = OUTPUT / "demo.png"
PHOTO_NAME = "dynamicid_demo_photo_{}.png"
INSIGHTFACE_NOTE = (
    "InsightFace's SCRFD, 2d106det and ArcFace find and recognise the face; "
    "their weights are for non-commercial research only."
)
MINIATURE_NOTE = (
    "This is the miniature, a small model of rendered people after a short training: skin, hair and the form of the\n"
    "head are those of the photo, faces are soft. For pictures like photographs, set COMFYUI_PATH to a ComfyUI with\n"
    "an SD 1.5 checkpoint in models/checkpoints, CLIP ViT-H in models/clip_vision and DynamicID's SAA file in\n"
    "models/dynamicid."
)


@dataclass(frozen=True)
class Example:
    """One picture. name: of its file. workflow: its name in workflows/. prompt, size: for the miniature."""

    name: str
    title: str
    workflow: str
    prompt: str
    size: tuple[int, int] = (128, 144)

    @property
    def path(self) -> Path:
        """The workflow's file."""
        return ROOT / "workflows" / f"{self.workflow}.json"

    @property
    def picture(self) -> Path:
        """The picture's file."""
        return OUTPUT / f"{self.name}.png"


PORTRAIT = "a portrait of a person, wearing a red T-shirt, in front of a plain blue wall"
EXAMPLES = (
    Example("one_person", "As in the photo", "one_person", PORTRAIT),
    Example("smiling", "Smiling", "expression_by_words", PORTRAIT),
    Example("turned", "Turned", "pose_by_sliders", PORTRAIT),
    Example(
        "two_people", "Two people in boxes", "two_people_boxes", "two people in front of a plain green wall", (288, 144)
    ),
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line, checked as far as they can be before anything is set up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, metavar="FILE", help="photograph of a person (default: a rendered one)")
    parser.add_argument("--prompt", metavar="TEXT", help="what the picture shows (default: the workflow's)")
    parser.add_argument("--steps", type=positive, metavar="N", help="sampling steps (default: the workflow's)")
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="size in pixels (default: the workflow's)")
    options = parser.parse_args(arguments)
    if options.photo and not options.photo.is_file():
        parser.error(f"there is no photo {options.photo}")
    return options


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants its types."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def picture_size(text: str) -> tuple[int, int]:
    """WxH in pixels. A latent cell is 8 pixels, so sides are multiples of 8."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 512x768")
    size = int(width), int(height)
    if min(size) < 64 or any(side % 8 for side in size):
        raise argparse.ArgumentTypeError(f"{text}: both sides must be multiples of 8 and at least 64")
    return size


# --- steps -----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """The demo, inside the environment."""
    begun = time.monotonic()
    host = hosts.user_host() or hosts.ensure_host()
    base = base_directory.prepare("demo")
    found = find_weights(host) if hosts.user_host() else []
    weights = found if isinstance(found, Weights) else None
    if weights is None:
        base_directory.add_insightface_pack(base)
    if isinstance(found, list) and found:
        print(f"{host} has no {' and no '.join(found)}, so this runs on the miniature.")
    photos = (options.photo or (PEOPLE[0] if weights is None else third_party.sample_photo("astronaut")), PEOPLE[1])
    for number, photo in enumerate(photos, start=1):
        save_photo(photo, base / "input" / PHOTO_NAME.format(number))
    print(f"Set-up took {time.monotonic() - begun:.1f} s. {INSIGHTFACE_NOTE}", flush=True)

    print(f"Starting ComfyUI {hosts.host_version(host)}.", flush=True)
    with HostServer(host, base) as server:
        print(f"ComfyUI started in {server.start_seconds:.1f} s.", flush=True)
        examples = EXAMPLES if weights is None else EXAMPLES[:1]
        results = [make(server, example, weights, options) for example in examples]
    OUTPUT.mkdir(exist_ok=True)
    for example, result in zip(examples, results, strict=True):
        result.picture.save(example.picture)
    contact_sheet(examples, results).save(SHEET)
    describe(examples, results, photos, weights)
    print(f"Done in {time.monotonic() - begun:.1f} s.")


def make(server: HostServer, example: Example, weights: Weights | None, options: argparse.Namespace) -> Result:
    """Runs a workflow."""
    print(f"Running {example.path.relative_to(ROOT)}:", flush=True)
    prompt = to_api(json.loads(example.path.read_text(encoding="utf-8")), server.object_info())
    fill_in(prompt, example, weights, options)
    add_activation_map(prompt)
    history = server.queue(prompt, report=lambda line: print(line, flush=True))
    return fetch_results(server, prompt, history)


def save_photo(photo: Path, target: Path) -> None:
    """Save any picture that Pillow reads, upright and without transparency."""
    from PIL import Image, ImageOps

    try:
        with Image.open(photo) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(target)
    except OSError:
        raise SetupError(f"{photo} cannot be read as a picture.") from None


# --- the workflow ----------------------------------------------------------------------------------------------------


def fill_in(prompt: Prompt, example: Example, weights: Weights | None, options: argparse.Namespace) -> None:
    """Set what depends on this machine, on the models and on the options."""
    for number, node in enumerate(nodes_of(prompt, "LoadImage"), start=1):
        prompt[node]["inputs"]["image"] = PHOTO_NAME.format(number)
    if weights is None:  # else the workflow's own pack, with which published adapters were trained
        set_inputs(prompt, "DynamicIDFaceAnalysisLoader", pack=third_party.INSIGHTFACE_PACK, provider="auto")
        use_miniature(prompt)
        ask_miniature(prompt, example.prompt, example.size)
    else:
        set_inputs(prompt, "CheckpointLoaderSimple", ckpt_name=weights.checkpoint)
        set_inputs(prompt, "CLIPVisionLoader", clip_name=weights.clip_vision)
        set_inputs(prompt, "DynamicIDLoader", adapter=weights.adapter)
    if options.size:
        set_inputs(prompt, "EmptyLatentImage", width=options.size[0], height=options.size[1])
    if options.steps:
        set_inputs(prompt, "KSampler", steps=options.steps)
    if options.prompt:
        set_text(prompt, "positive", options.prompt)


def add_activation_map(prompt: Prompt) -> None:
    """Add an activation map, which the workflow itself does not have."""
    sampler, decoder = the_node(prompt, "KSampler"), the_node(prompt, "VAEDecode")
    looked_at = {"model": [the_node(prompt, "DynamicIDApply"), 0], "latent": [sampler, 0], "image": [decoder, 0]}
    prompt["map"] = {"class_type": "DynamicIDActivationMap", "inputs": looked_at}
    prompt["map preview"] = {"class_type": "PreviewImage", "inputs": {"images": ["map", 0]}}
    for number, encoder in enumerate(nodes_of(prompt, "DynamicIDEncodeFace")):
        preview = {"class_type": "PreviewImage", "inputs": {"images": [encoder, 1]}}
        prompt[f"photo preview {number}"] = preview


@dataclass(frozen=True)
class Result:
    """What came out: the picture; each photo with the face found drawn on it, and the aligned face that ArcFace sees in
    its corner; the activation map of each person.
    """

    picture: Image.Image
    photos: list[Image.Image]
    maps: list[Image.Image]


def fetch_results(server: HostServer, prompt: Prompt, history: dict[str, Any]) -> Result:
    """The pictures of a run."""
    picture = fetch_images(server, history, the_node(prompt, "SaveImage"))[0]
    sheet = fetch_images(server, history, "map preview")[0]
    previews = [fetch_images(server, history, node) for node in prompt if node.startswith("photo preview")]
    width, height = picture.size
    # A row for each person, which begins with all layers together.
    maps = [sheet.crop((0, row * height, width, (row + 1) * height)) for row in range(len(previews))]
    return Result(picture, [with_inset(found, aligned) for found, _, aligned in previews], maps)


def with_inset(photo: Image.Image, small: Image.Image) -> Image.Image:
    """The photo, with a small picture in its lower right corner."""
    from PIL import ImageOps

    side = min(photo.size) // 4
    inset = ImageOps.expand(ImageOps.fit(small, (side, side)), border=max(1, side // 40), fill="white")
    photo.paste(inset, (photo.width - inset.width, photo.height - inset.height))
    return photo


def fetch_images(server: HostServer, history: dict[str, Any], node: str) -> list[Image.Image]:
    """The pictures that a node showed or saved."""
    from PIL import Image

    images = history["outputs"].get(node, {}).get("images", [])
    if not images:
        raise HostError(f"Node {node} gave no picture.")
    return [Image.open(io.BytesIO(server.fetch_image(image))).convert("RGB") for image in images]


# --- what the user gets ----------------------------------------------------------------------------------------------


def contact_sheet(examples: tuple[Example, ...], results: list[Result]) -> Image.Image:
    """A sheet with photos, activation maps and pictures; pictures of the same photos share a row."""
    from PIL import ImageOps

    rows: list[list[tuple[str, Image.Image]]] = []
    shown: list[bytes] = []  # photos of the row that is being filled
    for example, result in zip(examples, results, strict=True):
        panels = [("Where the face acts", seen) for seen in result.maps] + [(example.title, result.picture)]
        photos = [photo.tobytes() for photo in result.photos]
        if photos != shown:
            shown = photos
            rows.append([])
            panels = [("Photo, and face as ArcFace sees it", photo) for photo in result.photos] + panels
        rows[-1] += [(text, padded(image)) for text, image in panels]
    return ImageOps.expand(sheet(rows, 320, gap=20, caption=40), border=20, fill="white")


def padded(picture: Image.Image) -> Image.Image:
    """A picture of portrait format on a grey square, so that captions have room."""
    from PIL import ImageOps

    side = picture.height
    return ImageOps.pad(picture, (max(side, picture.width), side), color="#dddddd")


def describe(
    examples: tuple[Example, ...], results: list[Result], photos: tuple[Path, ...], weights: Weights | None
) -> None:
    """Print the pictures, their photos, and where they are."""
    print()
    print(f"Photos:   {', '.join(map(str, photos[: max(len(result.photos) for result in results)]))}")
    for example, result in zip(examples, results, strict=True):
        size = f"{result.picture.width} x {result.picture.height}"
        print(f"Picture:  {example.picture.relative_to(ROOT)}, {size}: {example.title.lower()}")
    print(f"Sheet:    {SHEET.relative_to(ROOT)}: photos with the face found, where it acts, pictures")
    if weights is None:
        print(MINIATURE_NOTE)
    else:
        print(f"Weights:  {weights.checkpoint}, {weights.clip_vision}, {weights.adapter}")


def main(arguments: list[str]) -> int:
    """Exit code. Outside the environment: creates it and runs this file again in it."""
    options = parse(arguments)
    return environment.command(Path(__file__), arguments, lambda: run(options), HostError, WorkflowError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
