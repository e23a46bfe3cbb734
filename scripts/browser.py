"""A real browser, without a window, on the interface of a running ComfyUI: find or install one, and open the page.

Chrome, Chromium or Edge, as installed on the machine; Playwright drives it and never downloads its own. The page
reaches the server on this machine and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host_server import HostServer
    from playwright.sync_api import Browser, Page, Route

COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
WINDOWS = (
    r"Google\Chrome\Application\chrome.exe",
    r"Chromium\Application\chrome.exe",
    r"Microsoft\Edge\Application\msedge.exe",
)
MACOS = (
    "Google Chrome.app/Contents/MacOS/Google Chrome",
    "Chromium.app/Contents/MacOS/Chromium",
    "Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
# In addition to Playwright's: without a network, a browser would wait for its vendor's servers.
ARGUMENTS = ("--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync", "--no-pings")
# No welcome, no offers of templates, no release notes over the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Release.Status": "changelog seen",
    "Comfy.Release.Version": "999.0.0",
    "Comfy.Release.Timestamp": 4102444800000,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.VersionCompatibility.DisableWarnings": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Locale": "en",
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Workflow.Persist": True,  # without it, no workflow is loaded at first
}
EMPTY: dict[str, Any] = {"nodes": [], "links": [], "groups": [], "last_node_id": 0, "last_link_id": 0, "version": 0.4}
LOAD_TIMEOUT = 60_000


class NoBrowserError(Exception):
    """No browser is available. The message is the reason."""


# --- finding one -----------------------------------------------------------------------------------------------------


def installed_browser() -> Path | None:
    """The browser CHROME_PATH names, else the first that is installed."""
    return next((path for path in candidates() if path.is_file()), None)


def candidates() -> Iterator[Path]:
    """Paths where browsers may be, on any system."""
    if os.environ.get("CHROME_PATH"):
        yield Path(os.environ["CHROME_PATH"])
    for command in COMMANDS:
        found = shutil.which(command)
        if found:
            yield Path(found)
    if os.name == "nt":
        for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
            if os.environ.get(variable):
                yield from (Path(os.environ[variable]) / path for path in WINDOWS)
    if sys.platform == "darwin":
        for folder in (Path("/Applications"), Path.home() / "Applications"):
            yield from (folder / path for path in MACOS)


def ensure_browser() -> Path:
    """An installed browser; on Debian, as root, Chromium is installed if there is none."""
    found = installed_browser()
    if found:
        return found
    if not may_install():
        raise NoBrowserError("no Chrome, Chromium or Edge is installed (CHROME_PATH may name one)")
    print("Installing Debian's package chromium, for the tests of the interface.", flush=True)
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        run = subprocess.run(
            ["apt-get", "--quiet", *command],
            capture_output=True,
            text=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    found = installed_browser()
    if not found:
        text = (run.stderr or run.stdout).strip().splitlines()
        raise NoBrowserError(
            f"Debian's chromium could not be installed: {text[-1] if text else 'apt-get gave no reason'}"
        )
    return found


def may_install() -> bool:
    """Whether this is Debian, as root. Not Ubuntu, whose package of that name only points to another store."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return "ID=debian" in release and bool(shutil.which("apt-get")) and os.geteuid() == 0


# --- using it --------------------------------------------------------------------------------------------------------


@contextmanager
def open_browser(executable: Path) -> Iterator[Browser]:
    """The browser, running without a window."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=str(executable), args=list(ARGUMENTS))
        except Error as error:
            raise NoBrowserError(f"{executable} does not start: {str(error).splitlines()[0]}") from None
        try:
            yield browser
        finally:
            browser.close()


def open_interface(browser: Browser, server: HostServer, **options: Any) -> Page:
    """ComfyUI's page, an empty graph and nothing in front of it, in a session of its own. Options as `new_context`."""
    save_settings(server)
    context = browser.new_context(**options)
    context.route(lambda url: not url.startswith((server.url, "data:", "blob:")), refuse)
    context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
    page = context.new_page()
    page.goto(server.url)
    # The interface loads its first workflow last.
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow", timeout=LOAD_TIMEOUT)
    load_workflow(page, EMPTY)
    return page


def load_workflow(page: Page, workflow: dict[str, Any]) -> None:
    """Show a workflow in UI form in the current tab."""
    tab = "window.app.extensionManager.workflow.activeWorkflow"
    page.evaluate(f"workflow => window.app.loadGraphData(workflow, true, true, {tab})", workflow)


def refuse(route: Route) -> None:
    """Block requests of the page to other machines."""
    route.abort()


def save_settings(server: HostServer) -> None:
    """Store the settings that the interface gets from the server when it starts."""
    data = json.dumps(SETTINGS).encode()
    request = urllib.request.Request(f"{server.url}/settings", data, {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).close()
