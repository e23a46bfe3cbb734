"""Fixtures shared by tests of the core: people to evaluate."""

import pytest

from dynamicid_core.evaluation.cases import find_references
from tests.core.evaluated_faces import save_photo


@pytest.fixture
def references(tmp_path):
    for name, colour in (("anna", (200, 0, 0)), ("ben", (0, 200, 0)), ("cleo", (0, 0, 200))):
        save_photo(tmp_path / "photos" / f"{name}.png", colour)
    return find_references(tmp_path / "photos")
