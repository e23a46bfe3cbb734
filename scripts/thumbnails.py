"""python scripts/thumbnails.py [--all] [WORKFLOW ...]: a picture of each workflow, as ComfyUI shows it beside its name.

For every workflow in workflows/ that has no picture or one that is older than itself: runs it on the miniature, shows
it with its results in a real browser, and saves the whole graph as a .jpg of the same name.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import base_directory
import environment
import hosts
import third_party
from browser import NoBrowserError, ensure_browser, load_workflow, open_browser, open_interface
from demo import PORTRAIT, save_photo
from host_server import HostError, HostServer
from on_miniature import PEOPLE, ask_miniature, set_inputs, the_node, use_miniature
from repository import ROOT
from workflow import WorkflowError, to_api

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = ROOT / "workflows"
WIDTH, QUALITY = 640, 80
# Drawn larger than saved, since ComfyUI leaves out small text.
DRAWN_WIDTH = 1600
# Height relative to width. Graphs of other proportions get a margin.
LOWEST, HIGHEST = 0.45, 1.0
MARGIN = 30
PHOTOS = (*PEOPLE, ROOT / "tests" / "miniature" / "people" / "6.jpg")
# Width of the workflow's own picture -> prompt and size for the miniature.
MINIATURE_SETTINGS = {
    128: (PORTRAIT, (128, 144)),
    512: (PORTRAIT, (128, 144)),
    768: ("two people in front of a plain green wall", (288, 144)),
    960: ("three people in front of a plain grey wall", (432, 144)),
}
# Nothing but the graph, and the parts of nodes that are elements of the page.
HIDING_STYLE = """
body * { visibility: hidden !important; }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }
"""
SETTINGS = {"LiteGraph.Canvas.MinFontSizeForLOD": 0}
# Position and size of everything on the graph.
BOUNDS = """() => {
    const {nodes, groups} = window.app.graph;
    const areas = [...nodes.map(node => node.getBounding()), ...groups.map(group => group._bounding)];
    const [left, top] = [0, 1].map(axis => Math.min(...areas.map(area => area[axis])));
    const [right, bottom] = [0, 1].map(axis => Math.max(...areas.map(area => area[axis] + area[axis + 2])));
    return [left, top, right - left, bottom - top];
}"""
# As if the server had just run it. outputs: node -> its results.
SEND_OUTPUTS = """outputs => {
    for (const [node, output] of Object.entries(outputs))
        window.app.api.dispatchCustomEvent("executed", {node, display_node: node, output, prompt_id: ""});
}"""
SHOW_AREA = """([left, top, width, height]) => {
    const {canvas} = window.app;
    const frame = canvas.canvas.getBoundingClientRect();
    const {ds} = canvas;
    ds.scale = Math.min(frame.width / width, frame.height / height);
    ds.offset = [(frame.width / ds.scale - width) / 2 - left, (frame.height / ds.scale - height) / 2 - top];
    canvas.deselectAll();
    canvas.setDirty(true, true);
}"""


def outdated() -> list[Path]:
    """Workflows without a picture, or with one from before their last change."""
    return [path for path in sorted(WORKFLOWS.glob("*.json")) if not is_recent(picture_of(path), path)]


def picture_of(workflow: Path) -> Path:
    """The picture file of a workflow."""
    return workflow.with_suffix(".jpg")


def is_recent(picture: Path, workflow: Path) -> bool:
    """Whether a picture is newer than its workflow."""
    return picture.exists() and picture.stat().st_mtime >= workflow.stat().st_mtime


def make_all(paths: list[Path]) -> None:
    """Make the pictures of workflows, on one server and in one browser."""
    host = hosts.user_host() or hosts.ensure_host()
    base = base_directory.prepare("thumbnails")
    base_directory.add_insightface_pack(base)
    with HostServer(host, base) as server:
        # First all runs, then all pictures: Playwright and the runs each need an event loop of their own.
        shown = [run(server, path, base / "input") for path in paths]
        with open_browser(ensure_browser()) as browser:
            page = open_interface(browser, server, viewport={"width": DRAWN_WIDTH, "height": DRAWN_WIDTH // 2})
            for name, value in SETTINGS.items():
                page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
            page.add_style_tag(content=HIDING_STYLE)
            for path, (workflow, outputs) in zip(paths, shown, strict=True):
                save_picture(page, workflow, outputs, picture_of(path))


def run(server: HostServer, path: Path, photos: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow, and what each of its nodes shows after a run on the miniature."""
    begun = time.monotonic()
    workflow = json.loads(path.read_text(encoding="utf-8"))
    provide_photos(workflow, photos)
    outputs = results(server, workflow)
    print(f"{path.relative_to(ROOT)}  {time.monotonic() - begun:.1f} s", flush=True)
    return workflow, outputs


def provide_photos(workflow: dict[str, Any], folder: Path) -> None:
    """Give every Load Image a rendered person, under the name the workflow has for it, or for masks a part of the
    picture: the first mask its left half, the next one its right half.
    """
    people, halves = cycle(PHOTOS), cycle(((0, 0, 256, 512), (256, 0, 512, 512)))
    for node in workflow["nodes"]:
        if node["type"] != "LoadImage":
            continue
        target = folder / Path(node["widgets_values"][0]).name
        if any(output["links"] for output in node["outputs"] if output["name"] == "MASK"):
            save_mask(next(halves), target)
        else:
            save_photo(next(people), target)


def save_mask(box: tuple[int, int, int, int], target: Path) -> None:
    """Save a grey picture with a transparent hole, from which Load Image makes a mask."""
    from PIL import Image

    picture = Image.new("RGBA", (512, 512), "#888")
    picture.paste((136, 136, 136, 0), box)
    picture.save(target)


def results(server: HostServer, workflow: dict[str, Any]) -> dict[str, Any]:
    """Run a workflow. Node -> its results."""
    prompt = to_api(workflow, server.object_info())
    use_miniature(prompt)
    ask_miniature(prompt, *MINIATURE_SETTINGS[prompt[the_node(prompt, "EmptyLatentImage")]["inputs"]["width"]])
    set_inputs(prompt, "DynamicIDFaceAnalysisLoader", pack=third_party.INSIGHTFACE_PACK)
    outputs: dict[str, Any] = server.queue(prompt)["outputs"]
    return outputs


def save_picture(page: Page, workflow: dict[str, Any], outputs: dict[str, Any], target: Path) -> None:
    """Load a workflow, show all of it with its results, and save a screenshot."""
    from PIL import Image

    load_workflow(page, workflow)
    page.evaluate(SEND_OUTPUTS, outputs)
    page.wait_for_timeout(1000)  # pictures arrive, and nodes grow with them
    left, top, width, height = page.evaluate(BOUNDS)
    area = [left - MARGIN, top - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN]
    ratio = min(max(area[3] / area[2], LOWEST), HIGHEST)
    page.set_viewport_size({"width": DRAWN_WIDTH, "height": round(DRAWN_WIDTH * ratio)})
    page.wait_for_timeout(300)
    page.evaluate(SHOW_AREA, area)
    page.wait_for_timeout(300)
    frame = page.locator("#graph-canvas").bounding_box()
    with Image.open(io.BytesIO(page.screenshot(clip=frame))) as picture:
        size = (WIDTH, round(WIDTH * picture.height / picture.width))
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(target, quality=QUALITY, optimize=True)


def parse(arguments: list[str]) -> list[Path]:
    """The workflows that need a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflows", nargs="*", type=Path, metavar="WORKFLOW", help="only these, whatever they have")
    parser.add_argument("--all", action="store_true", help="also those whose picture is recent")
    options = parser.parse_args(arguments)
    missing = [path for path in options.workflows if not path.is_file()]
    if missing:
        parser.error(f"there is no workflow {missing[0]}")
    if options.all:
        return sorted(WORKFLOWS.glob("*.json"))
    return [path.resolve() for path in options.workflows] or outdated()


def main(arguments: list[str]) -> int:
    """Exit code of the command. Runs itself again inside the environment."""
    workflows = parse(arguments)
    if not workflows:
        print("Every workflow has a recent picture.")
        return 0
    return environment.command(
        Path(__file__), arguments, lambda: make_all(workflows), HostError, NoBrowserError, WorkflowError
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
