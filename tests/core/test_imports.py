"""The direction of imports inside the pack, as CONTRIBUTING.md says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE, NODES = ROOT / "dynamicid_core", ROOT / "nodes"
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}
FILES = [ROOT / "__init__.py", *sorted(CORE.rglob("*.py")), *sorted(NODES.rglob("*.py"))]


def imported(file):
    """What a file imports: names of external packages, and files or folders of the pack by path."""
    others, own = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            own |= {base, *(base / alias.name for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
    return others, own


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    others, own = imported(file)
    of_host = others & HOST_MODULES
    assert "dynamicid_core" not in others  # relative ones only: the pack's folder may have any name
    if CORE in file.parents:
        assert not any(path == NODES or NODES in path.parents for path in own)
        may_import_host = CORE / "comfy_host" in file.parents
        assert not of_host or may_import_host
        if not may_import_host and {"training", "evaluation"}.isdisjoint(file.relative_to(CORE).parts):
            assert not any(CORE / "comfy_host" in (path, *path.parents) for path in own)
    else:
        assert of_host <= {"comfy_api"}


HEAVY = {"insightface", "onnxruntime", "onnx", "cv2", "skimage", "scipy", "transformers", "accelerate", "matplotlib"}
NODE_SIDE = [file for file in FILES if {"training", "evaluation"}.isdisjoint(file.relative_to(ROOT).parts)]


@pytest.mark.parametrize("file", NODE_SIDE, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_machine_without_heavy_packages_still_has_every_node(file):
    """They are imported where they are used."""
    top = ast.parse(file.read_text(encoding="utf-8")).body
    whole = [node for node in top if isinstance(node, (ast.Import, ast.ImportFrom, ast.Try, ast.If, ast.With))]
    names = set()
    for node in (inner for outer in whole for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    assert not names & HEAVY


def test_the_check_sees_imports_of_both_kinds():
    others, own = imported(CORE / "comfy_host" / "miniature.py")
    assert {"comfy", "torch"} <= others
    assert CORE / "checkpoint" in own
    assert CORE / "comfy_host" / "loading" in own
