"""Boots a real ComfyUI in this process, on the CPU, with its own base directory and this pack installed in it."""

import asyncio
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMFYUI = os.environ.get("COMFYUI_PATH")

if not COMFYUI:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not COMFYUI:
        return "tests/host skipped: COMFYUI_PATH is not set (python scripts/test.py sets up a host and runs them)"
    return f"ComfyUI {importlib.import_module('comfyui_version').__version__}"


def boot() -> Path:
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    importlib.import_module("torchvision_shim").make_torchvision_importable()
    sys.path.insert(0, str(COMFYUI))
    base = Path(tempfile.mkdtemp(prefix="dynamicid-tests-"))
    (base / "custom_nodes").mkdir()
    (base / "models" / "dynamicid").mkdir(parents=True)
    importlib.import_module("base_directory").link_folder(REPOSITORY, base / "custom_nodes" / "dynamicid")
    offline = importlib.import_module("hosts").offline_argument(Path(COMFYUI))
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base), offline]
    importlib.import_module("comfy.options").enable_args_parsing()  # before anything imports comfy.cli_args
    host_nodes = importlib.import_module("nodes")
    asyncio.run(host_nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False))
    return base


if COMFYUI:
    BASE = boot()


@pytest.fixture(scope="session", autouse=True)
def _clean_up():
    yield
    if COMFYUI:
        shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def models():
    """The models folder of the running host."""
    return BASE / "models"


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """The miniature's recipe after a step or two of each stage."""
    recipe = importlib.import_module("tests.host.miniature_recipe")
    return recipe.trained_workspace(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="session")
def dynamicid(models):
    """The golden adapter, loaded by the node from the released file layout."""
    from tests.host.helpers import GOLDEN, run

    shutil.copy(GOLDEN / "SAA_tiny.bin", models / "dynamicid")
    return run("DynamicIDLoader", adapter="SAA_tiny.bin")[0]


@pytest.fixture(scope="session")
def editor(models, dynamicid):
    """The golden adapter with the golden IMR and a keypoint encoder, loaded by the node."""
    import torch

    from tests.host.helpers import GOLDEN, run, tiny_keypoint_encoder

    shutil.copy(GOLDEN / "IMR_tiny.bin", models / "dynamicid")
    torch.save(tiny_keypoint_encoder().state_dict(), models / "dynamicid" / "kpe.bin")
    return run("DynamicIDLoader", adapter="SAA_tiny.bin", imr="IMR_tiny.bin", keypoint_encoder="kpe.bin")[0]


@pytest.fixture(scope="session")
def face_analysis(models, pack):
    """The real InsightFace models, opened by the node from a nested folder."""
    from tests.host.helpers import run

    folder = models / "insightface" / "models" / "nested" / "vectron"
    shutil.copytree(pack, folder)
    # Under a neutral name: adapters in the authors' layout are refused with this recognition model.
    (folder / "w600k_mbf.onnx").rename(folder / "arcface.onnx")
    return run("DynamicIDFaceAnalysisLoader", pack="vectron", provider="CPU")[0]


@pytest.fixture(scope="session")
def photo_dynamicid(models):
    """An adapter that takes real photographs, through the tiny CLIP vision model."""
    from tests.host.helpers import photo_adapter, run

    photo_adapter(models / "dynamicid" / "photo.bin")
    return run("DynamicIDLoader", adapter="photo.bin")[0]


@pytest.fixture(scope="session")
def tiny_models():
    """A trainable UNet and the encoders, as ``load_models`` returns them."""
    return importlib.import_module("tests.host.training_helpers").make_models()


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory):
    """An adapter file for the tiny models."""
    from tests.host.helpers import photo_adapter

    return photo_adapter(tmp_path_factory.mktemp("adapter") / "photo.bin")
