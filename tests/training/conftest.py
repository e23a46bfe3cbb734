"""A folder of photographs and the data set built from it, for all tests of the builder."""

import pytest

from tests.training.builder import faces, run, save_person


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Three people with three photos each, a broken photo, one outside of the folders, and a person with only one."""
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in faces().items():
        save_person(folder, name, picture, ("plain", "mirrored", "turned"))
    (folder / "actor" / "plain.txt").write_text("a man in a suit\n")
    (folder / "actor" / "broken.jpg").write_bytes((folder / "actor" / "plain.jpg").read_bytes()[:2000])
    save_person(folder, "lonely", faces()["hopper"], ("plain",))
    faces()["hopper"].save(folder / "stray.png")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="session")
def built(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "set"
    assert run(source, out, "--shard-size=4") == 0
    return out
