"""The pack in a real ComfyUI server: what its page receives."""

import itertools
import json
import os
import time
import urllib.request
from pathlib import Path

import base_directory
import nodes as host_nodes
import pytest
import repository
from comfyui_version import __version__
from host_server import HostServer, Run
from on_miniature import PEOPLE, ask_miniature, set_inputs, the_node, use_miniature
from third_party import INSIGHTFACE_PACK
from workflow import to_api

ROOT = Path(__file__).parents[2]
PACK = repository.ROOT.name
SEEDS = itertools.count()
"""No two runs are the same: the server would answer from what it keeps."""


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


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def updated_nodes(monkeypatch):
    """The nodes whose results were sent to a page, in the order of the messages."""
    nodes, take = [], Run.take

    def note(run, message):
        if message.get("type") == "executed":
            nodes.append(message["data"]["node"])
        return take(run, message)

    monkeypatch.setattr(Run, "take", note)
    return nodes


@pytest.fixture
def prompt(server):
    """The workflow of the miniature, small."""
    base_directory.add_insightface_pack(server.base)
    workflow = json.loads((ROOT / "workflows" / "miniature.json").read_text(encoding="utf-8"))
    prompt = to_api(workflow, server.object_info())
    use_miniature(prompt)
    ask_miniature(prompt, "a person", (128, 144))
    set_inputs(prompt, "KSampler", steps=1, seed=next(SEEDS))
    set_inputs(prompt, "DynamicIDFaceAnalysisLoader", pack=INSIGHTFACE_PACK)
    photo = server.base / "input" / "person.jpg"
    photo.write_bytes(PEOPLE[0].read_bytes())
    set_inputs(prompt, "LoadImage", image=photo.name)
    return prompt


def test_a_page_gets_the_preview_of_a_face_that_is_encoded_already(server, prompt, updated_nodes):
    """As after the page was reloaded, or in a second one."""
    encode = the_node(prompt, "DynamicIDEncodeFace")
    set_inputs(prompt, "DynamicIDEncodeFace", crop="aligned")  # as in no other test, which would have encoded it
    for known in (False, True):
        set_inputs(prompt, "KSampler", seed=next(SEEDS))
        updated_nodes.clear()
        server.queue(prompt)
        assert encode in updated_nodes
        assert (encode not in server.node_seconds) == known


@pytest.mark.parametrize("kind", ["DynamicIDPoseKeypoints", "DynamicIDEncodeFace", "DynamicIDAutoLayout"])
def test_a_node_that_nothing_is_connected_to_does_not_stop_the_others(server, prompt, kind):
    """The server names it, and runs the rest."""
    required = server.object_info()[kind]["input"]["required"]
    values = {name: spec[1]["default"] for name, spec in required.items() if "default" in spec[1]}
    answer = post(server, {**prompt, "alone": {"class_type": kind, "inputs": values}})
    assert set(answer["node_errors"]) == {"alone"}
    (entry,) = wait_for(lambda: server.get(f"history/{answer['prompt_id']}")).values()
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"][the_node(prompt, "SaveImage")]["images"]


def post(server, prompt):
    """Queue a prompt as the page does, so that the server skips what it refuses."""
    request = urllib.request.Request(
        f"{server.url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def wait_for(ask, seconds=120):
    """The first answer that is not empty."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return answer


def test_comfyui_reads_what_the_pack_runs_on():
    """One unknown name, and it would take all of them for none."""
    from comfy_config.config_parser import extract_node_configuration

    project = extract_node_configuration(str(ROOT)).project
    assert set(project.supported_accelerators) == {"GPU :: NVIDIA CUDA", "GPU :: Apple Metal"}
    assert project.supported_os == ["OS Independent"]
    assert project.supported_comfyui_version == ">=0.3.52"
