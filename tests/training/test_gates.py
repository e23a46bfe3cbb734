"""The measures of the gates in real photographs, and how to disable each gate."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from dynamicid_core.training.data import gates
from dynamicid_core.training.data.build import build_person
from dynamicid_core.training.data.gates import Gates
from dynamicid_core.training.data.photos import find_people
from tests import photos

MIRROR = Image.Transpose.FLIP_LEFT_RIGHT


def portrait(pixels=None, scale=1.5):
    """Photographs with a face of at least 128 pixels."""
    picture = Image.fromarray(photos.astronaut()[:320, 60:380] if pixels is None else pixels)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)))


def judge(analysis, folder, pictures, **limits):
    """The photos that are kept, and (reason, detail) of the others."""
    (folder / "she").mkdir()
    for name, picture in pictures.items():
        picture.save(folder / "she" / f"{name}.png")
    samples, rejected = build_person(analysis, find_people(folder)[0][0], Gates(size=64, **limits))
    kept = {sample.labels["photo"] for sample in samples}
    return kept, {found.photo: (found.reason, found.detail) for found in rejected}


def test_a_group_has_several_faces(analysis, tmp_path):
    group = {"a": Image.fromarray(photos.group_of_six())}
    assert judge(analysis, tmp_path, group)[1] == {"she/a.png": (gates.SEVERAL_FACES, "6 faces of similar size")}


def test_a_small_face_is_measured_and_can_be_let_in(analysis, tmp_path):
    small = {"a": portrait(scale=1), "b": portrait(scale=1).transpose(MIRROR)}
    _, rejected = judge(analysis, tmp_path, small)
    assert {reason for reason, _ in rejected.values()} == {gates.SMALL_FACE}
    assert all("pixels, at least 128 needed" in detail for _, detail in rejected.values())
    (tmp_path / "again").mkdir()
    assert judge(analysis, tmp_path / "again", small, min_face=90)[0] == {"she/a.png", "she/b.png"}


def test_a_blurred_face_is_measured_and_can_be_let_in(analysis, tmp_path):
    blurred = {"a": portrait().filter(ImageFilter.GaussianBlur(4)), "b": portrait().transpose(MIRROR)}
    _, rejected = judge(analysis, tmp_path, blurred)
    assert rejected["she/a.png"][0] == gates.BLURRED
    assert rejected["she/b.png"] == (gates.TOO_FEW, "1 of the person left, at least 2 needed")
    (tmp_path / "again").mkdir()
    assert judge(analysis, tmp_path / "again", blurred, sharpness=0.0)[0] == {"she/a.png", "she/b.png"}


def test_another_person_is_measured_and_can_be_let_in(analysis, tmp_path):
    group = photos.group_of_six()
    pictures = {
        "a": portrait(),
        "b": portrait().transpose(MIRROR),
        "c": portrait().rotate(12, Image.Resampling.BICUBIC),
        "stranger": portrait(group[200:450, 20:220], 2),
    }
    kept, rejected = judge(analysis, tmp_path, pictures)
    assert kept == {"she/a.png", "she/b.png", "she/c.png"}
    reason, detail = rejected["she/stranger.png"]
    assert reason == gates.ANOTHER_PERSON
    assert "to the others, at least 0.35 needed" in detail
    (tmp_path / "again").mkdir()
    assert len(judge(analysis, tmp_path / "again", pictures, agreement=-1.0)[0]) == 4


def test_a_duplicate_names_the_photo_that_stays(analysis, tmp_path):
    pictures = {
        "bright": ImageEnhance.Brightness(portrait()).enhance(1.2),
        "large": portrait(scale=2),
        "mirrored": portrait().transpose(MIRROR),
    }
    kept, rejected = judge(analysis, tmp_path, pictures)
    assert kept == {"she/large.png", "she/mirrored.png"}, "a mirrored photo is another"
    assert rejected == {"she/bright.png": (gates.DUPLICATE, "of large.png")}


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_pictures_without_contrast_are_like_nothing(brightness):
    flat = gates.thumbnail(np.full((64, 64, 3), brightness, np.uint8))
    points = np.zeros((106, 2), np.float32)
    assert not flat.any()
    assert not gates.is_duplicate(flat, points, flat, points)


def test_the_six_of_a_group_are_six_people(analysis):
    group = photos.group_of_six()
    embeddings = [analysis.embed(group, face) for face in analysis.detect(group)]
    assert len(gates.strangers(embeddings, 0.35)) == 5, "of six different people one is left, whom another gate finds"


def test_the_same_face_many_times_has_no_strangers(analysis):
    face = np.asarray(portrait())
    embedding = analysis.embed(face, analysis.choose(face, "largest", 0).chosen)
    assert gates.strangers([embedding] * 5, 0.35) == {}
    assert gates.strangers([embedding], 0.35) == {}
    assert gates.strangers([], 0.35) == {}


def unrelated(count, start=0):
    rows = np.random.default_rng(start).normal(size=(count, 512)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_hundreds_of_strangers_take_few_rounds(monkeypatch):
    rounds = []
    compare = gates._cosines_to_the_others
    monkeypatch.setattr(gates, "_cosines_to_the_others", lambda rows: rounds.append(len(rows)) or compare(rows))
    assert len(gates.strangers(unrelated(800), 0.35)) == 799
    assert len(rounds) < 120
    assert sum(rounds) < 30 * 800


def test_few_strangers_go_one_by_one():
    person = unrelated(1) + 0.7 * unrelated(40, 1)
    several = np.concatenate([person / np.linalg.norm(person, axis=1, keepdims=True), unrelated(25, 2)])
    left, expected = list(range(len(several))), {}
    while True:
        cosines = gates._cosines_to_the_others(several[left])
        if cosines.min() >= 0.35:
            break
        expected[left.pop(int(cosines.argmin()))] = pytest.approx(float(cosines.min()))
    found = gates.strangers(several, 0.35)
    assert list(found) == list(expected)
    assert found == expected
    assert sorted(found) == list(range(40, 65))


@pytest.mark.parametrize("photos_of_one", [3, 4])
def test_strangers_are_measured_against_the_median_of_the_others(photos_of_one):
    embeddings = np.random.default_rng(0).normal(size=(photos_of_one, 512)).astype(np.float32)
    embeddings[:, 0] += 20
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    medians = [np.median(np.delete(embeddings, i, 0), axis=0) for i in range(photos_of_one)]
    expected = [float(own @ of / np.linalg.norm(of)) for own, of in zip(embeddings, medians, strict=True)]
    ((stranger, cosine), *_) = gates.strangers(embeddings, max(expected) - 1e-4).items()
    assert stranger == int(np.argmin(expected))
    assert cosine == pytest.approx(min(expected), abs=1e-5)
