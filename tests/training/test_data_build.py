"""The data set builder on real photographs, with real InsightFace models."""

import csv
import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from dynamicid_core.errors import InputError
from dynamicid_core.face_prompt import face_prompt
from dynamicid_core.images import open_photo
from dynamicid_core.training.data import gates
from dynamicid_core.training.data.build import build_person, examine
from dynamicid_core.training.data.gates import Gates, strangers
from dynamicid_core.training.data.photos import find_people
from dynamicid_core.training.data.shards import read_samples
from dynamicid_core.training.order import ShardSource
from tests import photos
from tests.training.builder import contents, faces, run, save_person, turned

pytestmark = pytest.mark.usefixtures("pack")


def test_every_good_photo_becomes_a_sample(built):
    found = [(sample.identity, sample.labels["photo"]) for sample in read_samples(built)]
    assert found == [
        (name, f"{name}/{view}.jpg") for name in sorted(faces()) for view in ("mirrored", "plain", "turned")
    ]


def test_samples_hold_what_the_models_measure(built, source, analysis):
    for sample in read_samples(built):
        photo = open_photo(source / sample.labels["photo"])
        face = analysis.choose(photo, "largest", 0).chosen
        assert sample.picture.shape == (512, 512, 3)
        assert sample.embedding @ analysis.embed(photo, face) > 0.999
        assert sample.embedding_rgb @ analysis.embed(photo, face, "rgb") > 0.999
        assert sample.face_prompt == face_prompt(sample.expression, torch.from_numpy(sample.pose))


def test_keypoints_lie_on_the_face_in_the_picture(built, analysis):
    for sample in read_samples(built):
        again = analysis.choose(sample.picture, "largest", 0).chosen.keypoints / 512
        assert np.abs(again - sample.keypoints).mean() < 0.02


def test_captions_come_from_the_text_beside_the_photo(built):
    captions = {sample.labels["photo"]: sample.caption for sample in read_samples(built)}
    assert captions["actor/plain.jpg"] == "a man in a suit"
    assert captions["hopper/plain.jpg"] == "a photo of a person"


def test_rejected_photos_are_listed_with_their_reason(built):
    with open(built / "rejected.csv", encoding="utf-8", newline="") as file:
        rows = {row["photo"]: row["reason"] for row in csv.DictReader(file)}
    assert rows == {
        "actor/broken.jpg": "unreadable",
        "lonely/plain.jpg": "too few photos",
        "stray.png": "outside of a person's folder",
    }


def test_people_of_whom_there_is_one_photo_can_be_let_in_for_anchoring(tmp_path):
    for name, picture in faces().items():
        save_person(tmp_path / "photos", name, picture, ("plain",))
    assert run(tmp_path / "photos", tmp_path / "set", "--size=64", "--least-photos=1") == 0
    source = ShardSource(tmp_path / "set", seed=0)
    assert {sample.identity for sample in islice(source.samples(0, 1), len(faces()))} == set(faces())
    with pytest.raises(InputError, match="has two photos, and reconfiguration learns from pairs"):
        next(source.people(0, 1, photos=2))


def test_the_manifest_counts_every_photo_once(built):
    about = json.loads((built / "manifest.json").read_text())
    assert about["people"] == {"given": 5, "kept": 3, "left_out": ["empty", "lonely"]}
    assert {name: about["photos"][name] for name in ("given", "accepted", "rejected")} == {
        "given": 12,
        "accepted": 9,
        "rejected": 3,
    }
    assert about["photos_per_person"] == {"actor": 3, "astronaut": 3, "hopper": 3}
    assert sum(about["expressions"].values()) == sum(about["views"].values()) == 9
    assert about["variface"]["people_with_as_many"] == 0
    assert about["variface"]["photos_missing"] == 3 * (35 - 3)
    assert about["settings"]["min_face"] == 128
    assert about["versions"]["insightface"] != "unknown"


def test_the_contact_sheet_has_a_row_per_person(built):
    with Image.open(built / "contact_sheet.jpg") as sheet:
        width, height = sheet.size
    assert width == 8 * 128
    assert height % 3 == 0
    assert height > 3 * 128


def test_a_finished_run_given_again_changes_nothing(built, source, capsys):
    before = contents(built)
    assert run(source, built, "--shard-size=4") == 0
    assert contents(built) == before
    assert "3 of 5 people, 9 of 12 photos" in capsys.readouterr().out


# --- the gates -------------------------------------------------------------------------------------------------------


def reasons(analysis, tmp_path, pictures, limits=None, who="astronaut"):
    """Photo -> why it is rejected, among good photos of the same person."""
    save_person(tmp_path, "she", faces()[who], ("plain", "mirrored", "both"))
    for name, picture in pictures.items():
        picture.save(tmp_path / "she" / f"{name}.png")
    people, *_ = find_people(tmp_path)
    samples, rejected = build_person(analysis, people[0], limits or Gates(size=64))
    assert len(samples) + len(rejected) == len(people[0].photos)
    return {Path(found.photo).stem: found.reason for found in rejected}


def test_each_gate_keeps_out_what_it_is_for(analysis, tmp_path):
    portrait = faces()["astronaut"]
    side = 180  # of her face
    two = Image.new("RGB", (portrait.width * 2, portrait.height))
    two.paste(portrait, (0, 0))
    two.paste(turned(portrait), (portrait.width, 0))
    found = reasons(
        analysis,
        tmp_path,
        {
            "coffee": Image.fromarray(photos.coffee()),
            "two": two,
            "small": portrait.resize((portrait.width // 2, portrait.height // 2)),
            "blurred": portrait.filter(ImageFilter.GaussianBlur(0.015 * side)),
            "somebody": faces()["hopper"],
        },
    )
    assert found == {
        "coffee": gates.NO_FACE,
        "two": gates.SEVERAL_FACES,
        "small": gates.SMALL_FACE,
        "blurred": gates.BLURRED,
        "somebody": gates.ANOTHER_PERSON,
    }


def test_a_much_smaller_second_face_is_no_matter(analysis, tmp_path):
    portrait = turned(faces()["astronaut"], -12)
    portrait.paste(faces()["actor"].resize((90, 90)), (0, portrait.height - 90))
    assert len(analysis.detect(np.asarray(portrait))) == 2
    assert reasons(analysis, tmp_path, {"with another": portrait}) == {}


def test_a_resaved_or_relit_photo_is_a_duplicate(analysis, tmp_path):
    portrait = faces()["astronaut"]
    found = reasons(
        analysis,
        tmp_path,
        {
            "smaller": portrait.resize((portrait.width * 4 // 5, portrait.height * 4 // 5)),
            "darker": ImageEnhance.Brightness(portrait).enhance(0.6),
        },
    )
    assert set(found.values()) == {gates.DUPLICATE}
    assert len(found) == 2, "one of the three stays"
    assert "smaller" in found


def test_a_photo_before_a_wall_is_a_duplicate_when_it_comes_back_from_a_messenger(analysis, tmp_path):
    """JPEG turns the gradient of a wall lit from one side into steps: parts that were slightly brighter are not."""
    portrait = turned(faces()["hopper"], -12)
    wall = np.zeros((portrait.height, portrait.width, 3)) + np.linspace(200, 206, portrait.width)[:, None]
    x0, y0, x1, y1 = analysis.choose(np.asarray(portrait), "largest", 0).chosen.box
    width, height = x1 - x0, y1 - y0
    head = Image.new("L", portrait.size)
    ellipse = (x0 - 0.15 * width, y0 - 0.3 * height, x1 + 0.15 * width, y1 + 0.1 * height)
    ImageDraw.Draw(head).ellipse(ellipse, fill=255)
    photo = Image.composite(portrait, Image.fromarray(wall.round().astype(np.uint8)), head)
    file = io.BytesIO()
    photo.resize((photo.width * 3 // 4, photo.height * 3 // 4)).save(file, "JPEG", quality=40)
    limits = Gates(size=64, min_face=100)
    found = reasons(analysis, tmp_path, {"photo": photo, "sent": Image.open(file)}, limits, who="hopper")
    assert found == {"sent": gates.DUPLICATE}


def test_of_duplicates_the_largest_face_stays(analysis, tmp_path):
    portrait = faces()["astronaut"]
    large = portrait.resize((portrait.width * 2, portrait.height * 2))
    assert reasons(analysis, tmp_path, {"large": large}) == {"plain": gates.DUPLICATE}


def test_dark_photos_are_as_sharp_as_bright_ones(analysis):
    bright = np.asarray(faces()["astronaut"])
    dark = (bright * 0.4).astype(np.uint8)
    face = analysis.choose(bright, "largest", 0).chosen
    assert gates.sharpness(dark, face) == pytest.approx(gates.sharpness(bright, face), rel=0.1)


def test_of_two_different_people_none_is_kept(analysis, tmp_path):
    save_person(tmp_path, "who", faces()["astronaut"], ("plain",))
    faces()["hopper"].save(tmp_path / "who" / "other.png")
    samples, rejected = build_person(analysis, find_people(tmp_path)[0][0], Gates(size=64))
    assert samples == []
    assert {found.reason for found in rejected} == {gates.ANOTHER_PERSON, gates.TOO_FEW}


def test_several_strangers_do_not_take_the_person_with_them():
    rng = np.random.default_rng(0)

    def somebody(people, spread):
        rows = people + spread * rng.normal(size=(len(people), 512)) / 512**0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    one = rng.normal(size=512)
    person = somebody(np.repeat(one[None] / np.linalg.norm(one), 5, axis=0), 1.0)
    others = somebody(np.zeros((4, 512)), 1.0)
    found = strangers(list(np.concatenate([others, person]).astype(np.float32)), 0.35)
    assert sorted(found) == [0, 1, 2, 3]


def test_photos_are_turned_as_the_camera_says_and_lose_transparency(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear.png")
    assert open_photo(tmp_path / "turned.jpg").shape == (40, 20, 3)
    assert (open_photo(tmp_path / "clear.png") == 255).all()


@pytest.mark.parametrize("turn", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270])
def test_photos_that_are_not_upright_are_turned_as_encode_face_turns_them(analysis, tmp_path, turn):
    (tmp_path / "she").mkdir()
    faces()["astronaut"].save(tmp_path / "she" / "a.png")
    faces()["astronaut"].transpose(turn).save(tmp_path / "she" / "b.png")
    (person,), *_ = find_people(tmp_path)
    upright, lying = (examine(analysis, person, photo, Gates(size=64)).sample for photo in person.photos)
    assert lying.embedding @ upright.embedding > 0.99
    assert lying.face_prompt == upright.face_prompt


@pytest.mark.parametrize("size", [(2000, 2), (1, 3000)])
def test_a_photo_as_thin_as_a_line_has_no_face(tmp_path, size):
    save_person(tmp_path / "photos", "she", faces()["astronaut"])
    Image.new("RGB", size, "red").save(tmp_path / "photos" / "she" / "line.png")
    assert run(tmp_path / "photos", tmp_path / "set", "--size=64") == 0
    assert "she/line.png,no face" in (tmp_path / "set" / "rejected.csv").read_text()
