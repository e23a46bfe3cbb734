"""Lists of files: the messages to a user without files, before anything runs."""

import asyncio
import os

import execution
import folder_paths
import pytest

from tests.host.helpers import core, node, run

LISTS = [
    ("DynamicIDLoadFace", "name", ("dynamicid_faces",), "Encode Face and Save Face make one"),
    ("DynamicIDLoadKeypoints", "name", ("dynamicid_keypoints",), "Save Keypoints, make one"),
    ("DynamicIDLoader", "adapter", ("dynamicid", "ipadapter"), "https://huggingface.co/meteorite2023/DynamicID"),
]


def errors_of(class_type, **inputs):
    """The host's errors for a prompt that cannot run."""
    prompt = {
        "1": {"class_type": class_type, "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    valid, _, _, errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    return [] if valid else [error["details"] for one in errors.values() for error in one["errors"]]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The models folders have no files."""
    for name in {name for *_, names, _ in LISTS for name in names}:
        known = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], known[1]))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


@pytest.mark.parametrize(("class_type", "name", "_", "advice"), LISTS)
def test_without_files_the_list_says_so_and_the_message_what_to_do(class_type, name, _, advice, empty, tmp_path):
    shown, *_ = node(class_type).INPUT_TYPES()["required"][name]
    options = shown if isinstance(shown, list) else node(class_type).INPUT_TYPES()["required"][name][1]["options"]
    assert options == ["(no files yet)"]
    (message,) = errors_of(class_type, **{name: options[0]})
    assert f"There are no files yet. Looked in {tmp_path}" in message
    assert advice in message


@pytest.mark.parametrize(("class_type", "name", "_", "__"), LISTS)
def test_a_file_that_is_not_there_is_named_before_anything_runs(class_type, name, _, __):
    (message,) = errors_of(class_type, **{name: "nobody.safetensors"})
    assert 'There is no file "nobody.safetensors". Looked in ' in message


@pytest.mark.parametrize("value", [5, True, {"a": 1}])
@pytest.mark.parametrize(("class_type", "name", "_", "__"), LISTS)
def test_a_value_that_is_not_a_file_name_is_reported_in_words(class_type, name, _, __, value):
    (message,) = errors_of(class_type, **{name: value})
    assert f"A file name is needed; found {value!r}" in message


@pytest.mark.parametrize(("class_type", "name", "_", "__"), LISTS)
def test_a_link_that_brings_no_file_name_is_reported_in_words(class_type, name, _, __):
    with pytest.raises(ValueError, match="A file name is needed; found None"):
        run(class_type, **{name: None})


@pytest.mark.parametrize("part", ["imr", "keypoint_encoder"])
def test_a_missing_part_of_an_adapter_is_not_blamed_on_the_adapter(part, dynamicid):
    given = {"adapter": "SAA_tiny.bin", part: "nothing.bin"}
    assert not any(one.startswith("adapter") for one in errors_of("DynamicIDLoader", **given))
    with pytest.raises(ValueError, match=r'There is no file "nothing\.bin"\. Looked in '):
        run("DynamicIDLoader", **given)


def test_folders_and_endings_that_others_have_named_stay(monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "insightface", (["/elsewhere"], {".bin"}))
    core("comfy_host.folders").register_model_folders()
    folders, known = folder_paths.folder_names_and_paths["insightface"]
    assert folders == ["/elsewhere", os.path.join(folder_paths.models_dir, "insightface")]
    assert known == {".bin", ".onnx"}
