"""The pack in a real ComfyUI server: what its pages get to see."""

import json
import os
import urllib.request
from pathlib import Path

import base_directory
import nodes as host_nodes
import pytest
import repository
from comfyui_version import __version__
from host_server import HostServer

ROOT = Path(__file__).parents[2]
PACK = repository.ROOT.name


@pytest.fixture(scope="module")
def server():
    with HostServer(Path(os.environ["COMFYUI_PATH"]), base_directory.prepare(f"tests-{__version__}")) as running:
        yield running


def read(server, path):
    with urllib.request.urlopen(f"{server.url}/{path}") as answer:
        return answer.read().decode()


def test_the_server_knows_every_node_under_its_title(server):
    info = server.object_info()
    for name, cls in host_nodes.NODE_CLASS_MAPPINGS.items():
        if name.startswith("DynamicID"):
            assert info[name]["display_name"] == cls.define_schema().display_name


def test_the_log_has_no_complaint_about_the_pack(server):
    complaints = [line for line in server.log.read_text().splitlines() if "IMPORT FAILED" in line]
    assert not any(PACK in line for line in complaints)


def test_the_frontend_finds_help_pages_and_workflows(server):
    templates = server.get("workflow_templates")
    pack = next(name for name in templates if "one_person" in templates[name])
    assert json.loads(read(server, f"api/workflow_templates/{pack}/one_person.json"))["nodes"]
    page = read(server, f"extensions/{pack}/docs/DynamicIDApply.md")
    assert page == (ROOT / "web" / "docs" / "DynamicIDApply.md").read_text(encoding="utf-8")


def test_the_frontend_gets_the_chinese_texts(server):
    served = server.get("i18n")["zh"]["nodeDefs"]
    written = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert served["DynamicIDApply"] == written["DynamicIDApply"]
