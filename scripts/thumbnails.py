"""python scripts/thumbnails.py [--all] [WORKFLOW ...]: a picture of each workflow, as ComfyUI shows it beside its name.

For every workflow in workflows/ that has no picture or one that is older than itself, opens it in a real browser on a
running ComfyUI and saves the whole graph as a .jpg of the same name.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
from browser import NoBrowserError, ensure_browser, load_workflow, open_browser, open_interface
from environment import ROOT
from host_server import HostError, HostServer

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = ROOT / "workflows"
WIDTH, QUALITY = 640, 80
# Drawn larger than it is saved, since ComfyUI leaves out text that would be small on the screen.
DRAWN_WIDTH = 1600
# Height in proportion to the width. Graphs that are flatter or higher get a margin.
LOWEST, HIGHEST = 0.45, 1.0
MARGIN = 30
# Nothing but the graph, and the parts of nodes that are elements of the page.
HIDE = """
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
SHOW = """([left, top, width, height]) => {
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
    """Where the picture of a workflow belongs."""
    return workflow.with_suffix(".jpg")


def is_recent(picture: Path, workflow: Path) -> bool:
    """Whether a picture is newer than its workflow."""
    return picture.exists() and picture.stat().st_mtime >= workflow.stat().st_mtime


def make_all(workflows: list[Path]) -> None:
    """One picture after the other, in one browser on one server."""
    host = environment.user_host() or environment.ensure_host()
    base = environment.base_directory("thumbnails")
    with HostServer(host, base) as server, open_browser(ensure_browser()) as browser:
        page = open_interface(browser, server, viewport={"width": DRAWN_WIDTH, "height": DRAWN_WIDTH // 2})
        for name, value in SETTINGS.items():
            page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
        page.add_style_tag(content=HIDE)
        for path in workflows:
            begun = time.monotonic()
            workflow = json.loads(path.read_text(encoding="utf-8"))
            provide_photos(workflow, base / "input")
            save_picture(page, workflow, picture_of(path))
            print(f"{picture_of(path).relative_to(ROOT)}  {time.monotonic() - begun:.1f} s", flush=True)


def provide_photos(workflow: dict[str, Any], folder: Path) -> None:
    """Let every Load Image show something, under the name the workflow has for it: a photograph, or an empty mask."""
    from PIL import Image

    for node in workflow["nodes"]:
        if node["type"] != "LoadImage":
            continue
        target = folder / Path(node["widgets_values"][0]).name
        if any(output["links"] for output in node["outputs"] if output["name"] == "MASK"):
            Image.new("RGB", (512, 512), "#888").save(target)
        else:
            shutil.copyfile(environment.sample_photo("astronaut"), target)


def save_picture(page: Page, workflow: dict[str, Any], target: Path) -> None:
    """Load a workflow, show all of it, and save what is seen."""
    from PIL import Image

    load_workflow(page, workflow)
    page.wait_for_timeout(500)  # photographs arrive, and nodes grow with them
    left, top, width, height = page.evaluate(BOUNDS)
    area = [left - MARGIN, top - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN]
    ratio = min(max(area[3] / area[2], LOWEST), HIGHEST)
    page.set_viewport_size({"width": DRAWN_WIDTH, "height": round(DRAWN_WIDTH * ratio)})
    page.wait_for_timeout(300)
    page.evaluate(SHOW, area)
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
    return environment.command(Path(__file__), arguments, lambda: make_all(workflows), HostError, NoBrowserError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
