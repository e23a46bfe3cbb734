"""A real ComfyUI server and a real browser without a window, one of each for all tests here."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMFYUI = os.environ.get("COMFYUI_PATH")
FRONTEND = os.environ.get("COMFYUI_FRONTEND")  # the static folder of another comfyui-frontend-package
PICTURES = ROOT / "output" / "browser"

# The commands import each other by plain name, as they do when they are run.
sys.path.insert(0, str(ROOT / "scripts"))

if not COMFYUI:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not COMFYUI:
        return "tests/browser skipped: COMFYUI_PATH is not set (python scripts/test.py sets up a host and runs them)"
    return None


@pytest.fixture(scope="session")
def browser(request):
    """The installed browser, started. Without one, the tests are skipped with the reason."""
    import browser

    try:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            executable = browser.ensure_browser()
        with browser.open_browser(executable) as running:
            yield running
    except browser.NoBrowserError as reason:
        pytest.skip(f"tests of the interface: {reason}")


@pytest.fixture(scope="session")
def server(browser):
    """ComfyUI with the pack as its only custom node."""
    import base_directory
    import hosts
    import repository
    from host_server import HostServer

    if not repository.venv_python().exists():
        pytest.skip("tests of the interface: .venv does not exist (python scripts/test.py makes it)")
    arguments = ("--front-end-root", FRONTEND) if FRONTEND else ()
    with HostServer(hosts.user_host(), base_directory.prepare("browser"), arguments=arguments) as running:
        yield running


@pytest.fixture(scope="session")
def interface(browser, server):
    """ComfyUI's page."""
    from browser import open_interface

    return open_interface(browser, server, viewport={"width": 1400, "height": 1000}, has_touch=True)


@pytest.fixture
def graph(interface):
    """An empty graph on the page, shown in its natural size. Errors of the page's scripts fail the test."""
    from browser import EMPTY, load_workflow

    from tests.browser.interface import Graph

    errors = []

    def note(error):
        errors.append(error)

    interface.on("pageerror", note)
    load_workflow(interface, EMPTY)
    graph = Graph(interface)
    graph.show_at_natural_size()
    yield graph
    graph.close_subgraphs()
    interface.remove_listener("pageerror", note)
    assert not errors


@pytest.fixture
def setting(graph):
    """Change a setting of the interface until the test is over."""
    before = {}
    settings = "window.app.extensionManager.setting"

    def change(name, value):
        before.setdefault(name, graph.page.evaluate(f"name => {settings}.get(name)", name))
        graph.page.evaluate(f"([name, value]) => {settings}.set(name, value)", [name, value])
        graph.settle()

    yield change
    for name, value in before.items():
        change(name, value)


@pytest.fixture
def save_picture(interface):
    """Keep a picture of the page in output/browser."""

    def save(name):
        PICTURES.mkdir(parents=True, exist_ok=True)
        interface.screenshot(path=PICTURES / f"{name}.png")

    return save
