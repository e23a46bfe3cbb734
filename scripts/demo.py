"""Run the whole pack once: a photograph in, a picture of that person out.

Sets up what is needed on first use, starts ComfyUI without a window, runs workflows/one_person.json and writes the
picture and a contact sheet to output/. With COMFYUI_PATH set, uses that ComfyUI and its models; else models of random
numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
from environment import ROOT, SetupError
from host_server import HostError, HostServer, Prompt
from model_files import Weights, find_weights
from workflow import WorkflowError, to_api

if TYPE_CHECKING:
    from PIL import Image

WORKFLOW = ROOT / "workflows" / "one_person.json"
OUTPUT = ROOT / "output"
PICTURE = OUTPUT / "one_person.png"
SHEET = OUTPUT / "one_person_sheet.png"
PHOTO_NAME = "dynamicid_demo_photo.png"

# Enough to see every part run, on a processor, in a minute or two.
RANDOM_SIZE, RANDOM_STEPS = (256, 256), 6
RANDOM_DISK = 4_000_000_000

INSIGHTFACE_NOTE = (
    "InsightFace's SCRFD, 2d106det and ArcFace find and recognise the face; "
    "their weights are for non-commercial research only."
)
RANDOM_NOTE = (
    "The weights are random: the picture is noise; it shows that every part runs, not what DynamicID can do.\n"
    "For a real picture set COMFYUI_PATH to a ComfyUI with an SD 1.5 checkpoint in models/checkpoints, CLIP ViT-H in\n"
    "models/clip_vision and DynamicID's SAA file in models/dynamicid."
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line, checked as far as they can be before anything is set up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, metavar="FILE", help="photograph of a person (default: a sample)")
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
    host = environment.user_host() or environment.ensure_host()
    base = environment.base_directory("demo")
    environment.add_insightface_pack(base)
    weights = choose_weights(host, base)
    photo = options.photo or environment.sample_photo("astronaut")
    save_photo(photo, base / "input" / PHOTO_NAME)
    print(f"Set-up took {time.monotonic() - begun:.1f} s. {INSIGHTFACE_NOTE}", flush=True)

    print(f"Starting ComfyUI {environment.host_version(host)}.", flush=True)
    with HostServer(host, base) as server:
        print(f"ComfyUI started in {server.start_seconds:.1f} s. Running {WORKFLOW.relative_to(ROOT)}:", flush=True)
        prompt = to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.object_info())
        fill_in(prompt, weights, options)
        add_activation_map(prompt)
        started = time.monotonic()
        history = server.queue(prompt, report=lambda line: print(line, flush=True))
        print(f"The workflow took {time.monotonic() - started:.1f} s.")
        results = fetch_results(server, prompt, history)
    OUTPUT.mkdir(exist_ok=True)
    results.picture.save(PICTURE)
    contact_sheet(results, weights).save(SHEET)
    describe(weights, photo, prompt)
    print(f"Done in {time.monotonic() - begun:.1f} s.")


def choose_weights(host: Path, base: Path) -> Weights:
    """The user's models if COMFYUI_PATH has one of each kind, else random ones."""
    found = find_weights(host) if environment.user_host() else None
    return found or random_weights(host, base / "models")


def random_weights(host: Path, models: Path) -> Weights:
    """Written by a process of its own: it holds a whole checkpoint in memory, and imports the host's code."""
    import random_weights as writer

    names = (writer.CHECKPOINT, writer.CLIP_VISION, writer.ADAPTER)
    if not all((models / name).exists() for name in names):
        if shutil.disk_usage(models).free < RANDOM_DISK:
            raise SetupError("Model files of random numbers need 4 GB of disk space in .cache, which are not free.")
        print("Writing model files of random numbers (3.5 GB, once).", flush=True)
        command = [sys.executable, str(Path(writer.__file__)), str(host), str(models)]
        if subprocess.run(command).returncode:
            raise SetupError("The model files of random numbers could not be written.")
    checkpoint, clip_vision, adapter = (Path(name).name for name in names)
    return Weights(checkpoint, clip_vision, adapter, random=True)


def save_photo(photo: Path, target: Path) -> None:
    """Any picture Pillow reads, upright and without transparency."""
    from PIL import Image, ImageOps

    try:
        with Image.open(photo) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(target)
    except OSError:
        raise SetupError(f"{photo} cannot be read as a picture.") from None


# --- the workflow ----------------------------------------------------------------------------------------------------


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    """Ids of the nodes of one kind."""
    return [node for node, content in prompt.items() if content["class_type"] == kind]


def the_node(prompt: Prompt, kind: str) -> str:
    """Id of the first node of a kind that the workflow must have."""
    found = nodes_of(prompt, kind)
    if not found:
        raise WorkflowError(f"{WORKFLOW.relative_to(ROOT)} has no {kind}.")
    return found[0]


def fill_in(prompt: Prompt, weights: Weights, options: argparse.Namespace) -> None:
    """Set what depends on this machine and on the options."""

    def set_inputs(kind: str, **values: object) -> None:
        prompt[the_node(prompt, kind)]["inputs"].update(values)

    set_inputs("LoadImage", image=PHOTO_NAME)
    set_inputs("CheckpointLoaderSimple", ckpt_name=weights.checkpoint)
    set_inputs("CLIPVisionLoader", clip_name=weights.clip_vision)
    set_inputs("DynamicIDLoader", adapter=weights.adapter)
    set_inputs("DynamicIDFaceAnalysisLoader", pack=environment.INSIGHTFACE_PACK, provider="auto")
    size = options.size or (RANDOM_SIZE if weights.random else None)
    if size:
        set_inputs("EmptyLatentImage", width=size[0], height=size[1])
    steps = options.steps or (RANDOM_STEPS if weights.random else None)
    if steps:
        set_inputs("KSampler", steps=steps)
    if options.prompt:
        positive = prompt[the_node(prompt, "DynamicIDApply")]["inputs"]["positive"][0]
        prompt[positive]["inputs"]["text"] = options.prompt


def add_activation_map(prompt: Prompt) -> None:
    """A look at where the face acted, which the workflow itself does not have."""
    sampler, decoder = the_node(prompt, "KSampler"), the_node(prompt, "VAEDecode")
    looked_at = {"model": [the_node(prompt, "DynamicIDApply"), 0], "latent": [sampler, 0], "image": [decoder, 0]}
    prompt["map"] = {"class_type": "DynamicIDActivationMap", "inputs": looked_at}
    prompt["map preview"] = {"class_type": "PreviewImage", "inputs": {"images": ["map", 0]}}


@dataclass(frozen=True)
class Results:
    """What came out: the picture, the photo as Encode Face shows it (drawn on, cropped, aligned), activation map."""

    picture: Image.Image
    photo: list[Image.Image]
    activation: Image.Image


def fetch_results(server: HostServer, prompt: Prompt, history: dict[str, Any]) -> Results:
    """The pictures of a run."""
    picture = fetch_images(server, history, the_node(prompt, "SaveImage"))[0]
    sheet = fetch_images(server, history, "map preview")[0]
    activation = sheet.crop((0, 0, picture.width, picture.height))  # the first column: all layers together
    encoder = the_node(prompt, "DynamicIDEncodeFace")
    for node in nodes_of(prompt, "PreviewImage"):
        if prompt[node]["inputs"]["images"][0] == encoder:
            return Results(picture, fetch_images(server, history, node), activation)
    return Results(picture, [], activation)


def fetch_images(server: HostServer, history: dict[str, Any], node: str) -> list[Image.Image]:
    """What a node showed or saved."""
    from PIL import Image

    images = history["outputs"].get(node, {}).get("images", [])
    if not images:
        raise HostError(f"Node {node} gave no picture.")
    return [Image.open(io.BytesIO(server.fetch_image(image))).convert("RGB") for image in images]


# --- what the user gets ----------------------------------------------------------------------------------------------


def contact_sheet(results: Results, weights: Weights) -> Image.Image:
    """Photo, crops and result side by side, each with a title."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    side, margin, title = 512, 24, 48
    result = "Result (random weights: noise)" if weights.random else "Result"
    panels = [
        *zip(("Photo with the face found", "Crop that CLIP sees", "Aligned for ArcFace"), results.photo, strict=False),
        ("Where the face acts", results.activation),
        (result, results.picture),
    ]
    sheet = Image.new("RGB", (margin + len(panels) * (side + margin), title + side + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (text, image) in enumerate(panels):
        left = margin + index * (side + margin)
        draw.text((left, title / 2), text, fill="black", font=ImageFont.load_default(26), anchor="lm")
        sheet.paste(ImageOps.pad(image, (side, side), color="#dddddd"), (left, title))
    return sheet


def describe(weights: Weights, photo: Path, prompt: Prompt) -> None:
    """Say what was made, from what, and where it is."""
    sampler = prompt[the_node(prompt, "KSampler")]["inputs"]
    latent = prompt[the_node(prompt, "EmptyLatentImage")]["inputs"]
    print()
    print(f"Photo:    {photo}")
    print(f"Picture:  {PICTURE.relative_to(ROOT)}, {latent['width']} x {latent['height']}, {sampler['steps']} steps")
    print(
        f"Sheet:    {SHEET.relative_to(ROOT)}: photo with the face found, crop, aligned face, activation map, picture"
    )
    print(f"Weights:  {weights.checkpoint}, {weights.clip_vision}, {weights.adapter}")
    if weights.random:
        print(RANDOM_NOTE)


def main(arguments: list[str]) -> int:
    """Exit code. Outside the environment: makes it and runs this file again in it."""
    options = parse(arguments)
    return environment.command(Path(__file__), arguments, lambda: run(options), HostError, WorkflowError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
