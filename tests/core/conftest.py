"""What several files of tests of the core take: InsightFace's models, and people to evaluate."""

import os

import pytest

from dynamicid_core.evaluation.cases import find_references
from dynamicid_core.face_packs import open_pack
from tests.core.evaluated_faces import save_photo


@pytest.fixture(scope="session")
def pack():
    """The folder of a real InsightFace pack."""
    folder = os.environ.get("DYNAMICID_INSIGHTFACE")
    if not folder:
        pytest.skip("DYNAMICID_INSIGHTFACE names no InsightFace pack (python scripts/test.py fetches one)")
    return folder


@pytest.fixture(scope="session")
def analysis(pack):
    return open_pack(pack, "CPU")


@pytest.fixture
def references(tmp_path):
    for name, colour in (("anna", (200, 0, 0)), ("ben", (0, 200, 0)), ("cleo", (0, 0, 200))):
        save_photo(tmp_path / "photos" / f"{name}.png", colour)
    return find_references(tmp_path / "photos")
