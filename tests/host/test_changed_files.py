"""Files that were replaced under the same name are read again."""

import os
from copy import deepcopy

import nodes as host_nodes
import pytest

from tests.host.graphs import Executor, ListName
from tests.host.helpers import driving, make_face, node, run


@pytest.mark.parametrize("part", ["adapter", "imr", "keypoint_encoder"])
def test_a_replaced_weight_file_is_loaded_again(editor, models, part):
    files = {"adapter": "SAA_tiny.bin", "imr": "IMR_tiny.bin", "keypoint_encoder": "kpe.bin"}
    before = node("DynamicIDLoader").fingerprint_inputs(**files)
    os.utime(models / "dynamicid" / files[part], (1, 1))
    assert node("DynamicIDLoader").fingerprint_inputs(**files) != before


def test_a_pack_with_a_replaced_model_is_opened_again(face_analysis):
    loader = node("DynamicIDFaceAnalysisLoader")
    before = loader.fingerprint_inputs(pack="vectron")
    os.utime(face_analysis.recognition_file, (1, 1))
    assert loader.fingerprint_inputs(pack="vectron") != before


@pytest.mark.parametrize(
    ("loader", "part", "name", "others"),
    [
        ("DynamicIDLoader", "adapter", "SAA_tiny.bin", {"imr": "none", "keypoint_encoder": "none", "variant": "auto"}),
        (
            "DynamicIDLoader",
            "imr",
            "IMR_tiny.bin",
            {"adapter": "SAA_tiny.bin", "keypoint_encoder": "kpe.bin", "variant": "auto"},
        ),
        ("DynamicIDFaceAnalysisLoader", "pack", "vectron", {"provider": "CPU", "detection_size": 640}),
    ],
)
def test_an_adapter_or_pack_that_another_node_names_is_opened_again_only_when_it_was_replaced(
    editor, face_analysis, monkeypatch, models, loader, part, name, others
):
    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "TestListName", ListName)
    prompt = {
        "1": {"class_type": "TestListName", "inputs": {"name": name}},
        "2": {"class_type": loader, "inputs": {part: ["1", 0], **others}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    executor, ran = Executor(), []
    file = face_analysis.recognition_file if part == "pack" else models / "dynamicid" / name
    for change in (None, None, 2, None):
        if change:
            os.utime(file, (change, change))
        executor.run(deepcopy(prompt))
        ran.append("2" in executor.server.ran)
    assert ran == [True, False, True, False]


def test_replaced_keypoints_are_read_again(models):
    file = run("DynamicIDSaveKeypoints", keypoints=driving(), name="replaced")[0]
    before = node("DynamicIDLoadKeypoints").fingerprint_inputs(name=file)
    os.utime(models / "dynamicid" / "keypoints" / file, (1, 1))
    assert node("DynamicIDLoadKeypoints").fingerprint_inputs(name=file) != before


@pytest.mark.parametrize(
    ("saves", "given", "loads", "folder"),
    [
        ("DynamicIDSaveFace", lambda: {"face": make_face()}, "DynamicIDLoadFace", "faces"),
        ("DynamicIDSaveKeypoints", lambda: {"keypoints": driving()}, "DynamicIDLoadKeypoints", "keypoints"),
    ],
)
def test_a_file_that_another_node_names_is_read_again_only_when_it_was_replaced(
    monkeypatch, models, saves, given, loads, folder
):
    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "TestListName", ListName)
    prompt = {
        "1": {"class_type": "TestListName", "inputs": {"name": run(saves, **given(), name="named")[0]}},
        "2": {"class_type": loads, "inputs": {"name": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    executor = Executor()
    executor.run(deepcopy(prompt))  # the host keeps in it what it found
    assert "2" in executor.server.ran
    executor.run(deepcopy(prompt))
    assert "2" not in executor.server.ran
    (file,) = (models / "dynamicid" / folder).glob("named*")
    os.utime(file, (1, 1))
    executor.run(deepcopy(prompt))
    assert "2" in executor.server.ran


def test_a_link_that_leads_nowhere_does_not_make_every_run_read_the_folder_again(models):
    run("DynamicIDSaveFace", face=make_face(), name="fine")
    link = models / "dynamicid" / "faces" / "gone.safetensors"
    link.symlink_to("/nowhere/gone.safetensors")
    try:
        files = [file for file, _ in node("DynamicIDLoadFace").fingerprint_inputs(name=None)]
    finally:
        link.unlink()
    assert "fine.safetensors" in files
    assert link.name not in files
