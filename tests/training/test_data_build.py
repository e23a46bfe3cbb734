"""The data set builder on real photographs, with real InsightFace models."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from dynamicid_core.face_analysis import open_pack
from dynamicid_core.face_prompt import face_prompt
from dynamicid_core.training.data import __main__ as command
from dynamicid_core.training.data import gates
from dynamicid_core.training.data.build import build_person
from dynamicid_core.training.data.gates import Gates, strangers
from dynamicid_core.training.data.photos import find_people, open_photo
from dynamicid_core.training.data.shards import SampleIndex, ShardWriter, read_samples
from tests import photos

PACK = os.environ.get("DYNAMICID_INSIGHTFACE")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not PACK, reason="DYNAMICID_INSIGHTFACE names no InsightFace pack (python scripts/test.py fetches one)"
)


@functools.cache
def faces():
    """Name -> a portrait with a face of 150 pixels and more."""
    hopper = photos.photo("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg")
    plain = {"astronaut": photos.astronaut()[:320, 60:380], "actor": photos.actor()}
    scaled = {name: Image.fromarray(p).resize((p.shape[1] * 3 // 2, p.shape[0] * 3 // 2)) for name, p in plain.items()}
    return {**scaled, "hopper": Image.fromarray(hopper)}


def turned(picture, degrees=12):
    return picture.rotate(degrees, Image.Resampling.BICUBIC)


def mirrored(picture):
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


VIEWS = {"plain": lambda p: p, "mirrored": mirrored, "turned": turned, "both": lambda p: turned(mirrored(p))}


def save_person(folder, name, picture, views=("plain", "mirrored")):
    (folder / name).mkdir(parents=True)
    for view in views:
        VIEWS[view](picture).save(folder / name / f"{view}.jpg", quality=95)


def save_crowd(folder, people):
    """So many people, two photos each; only their names differ."""
    portrait = faces()["actor"]
    for i in range(people):
        save_person(folder, f"person {i}", portrait)
    return folder


def run(source, out, *more, pack=PACK):
    """Exit code of the command, in this process."""
    return command.main(
        ["build", f"--photos={source}", f"--out={out}", f"--pack={pack}", "--workers=1", "--provider=CPU", *more]
    )


def contents(folder):
    """Every file that must not depend on how often a run was interrupted."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "contact_sheet.jpg"}


@pytest.fixture(scope="module")
def analysis():
    return open_pack(PACK, "CPU")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three people with three photos each, a photo that is none, one outside of the folders, and a lonely one."""
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in faces().items():
        save_person(folder, name, picture, ("plain", "mirrored", "turned"))
    (folder / "actor" / "plain.txt").write_text("a man in a suit\n")
    (folder / "actor" / "broken.jpg").write_bytes((folder / "actor" / "plain.jpg").read_bytes()[:2000])
    save_person(folder, "lonely", faces()["hopper"], ("plain",))
    faces()["hopper"].save(folder / "stray.png")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "set"
    assert run(source, out, "--shard-size=4") == 0
    return out


# --- a data set ------------------------------------------------------------------------------------------------------


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
        "lonely/plain.jpg": "only photo of a person",
        "stray.png": "outside of a person's folder",
    }


def test_the_manifest_counts_every_photo_once(built):
    about = json.loads((built / "manifest.json").read_text())
    assert about["people"] == {"given": 4, "kept": 3, "left_out": ["lonely"]}
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
    assert "3 of 4 people, 9 of 12 photos" in capsys.readouterr().out


# --- the gates -------------------------------------------------------------------------------------------------------


def reasons(analysis, tmp_path, pictures, limits=None):
    """Photo -> why it is left out, among good photos of the astronaut that are there too."""
    save_person(tmp_path, "she", faces()["astronaut"], ("plain", "mirrored", "both"))
    for name, picture in pictures.items():
        picture.save(tmp_path / "she" / f"{name}.png")
    people, _ = find_people(tmp_path)
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


def test_a_photo_saved_or_lit_anew_is_a_duplicate(analysis, tmp_path):
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
    assert {found.reason for found in rejected} == {gates.ANOTHER_PERSON, gates.ALONE}


def test_several_strangers_do_not_take_the_person_with_them():
    chance = np.random.default_rng(0)

    def somebody(people, spread):
        rows = people + spread * chance.normal(size=(len(people), 512)) / 512**0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    one = chance.normal(size=512)
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


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path, monkeypatch):
    source = save_crowd(tmp_path / "photos", 5)
    assert run(source, tmp_path / "whole", "--size=64", "--shard-size=3") == 0
    add = ShardWriter.add

    def add_until_killed(writer, name, records, about):
        add(writer, name, records, about)
        if name == "person 2":
            raise RuntimeError("killed")

    monkeypatch.setattr(ShardWriter, "add", add_until_killed)
    monkeypatch.setattr(ShardWriter, "abandon", lambda writer: None)
    with pytest.raises(RuntimeError, match="killed"):
        run(source, tmp_path / "set", "--size=64", "--shard-size=3")
    monkeypatch.undo()
    assert list((tmp_path / "set").glob("*.part")), "as a killed process leaves it"
    with open(tmp_path / "set" / "progress.jsonl", "ab") as file:
        file.write(b'{"shard": "train-0000')
    assert run(source, tmp_path / "set", "--size=64", "--shard-size=3") == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_ctrl_c_says_how_to_go_on_and_workers_make_the_same_shards(tmp_path):
    source, out = save_crowd(tmp_path / "photos", 12), tmp_path / "set"
    settings = [f"--photos={source}", f"--out={out}", f"--pack={PACK}", "--size=64", "--shard-size=1"]
    begun = subprocess.Popen(
        [sys.executable, "-m", "dynamicid_core.training.data", "build", *settings, "--workers=2", "--provider=CPU"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while begun.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130, said
    assert "The same command goes on from the last whole shard." in said
    assert "Traceback" not in said
    assert 0 < len(list(out.glob("*.tar"))) < 12
    assert run(source, out, "--size=64", "--shard-size=1") == 0
    assert run(source, tmp_path / "whole", "--size=64", "--shard-size=1") == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
def test_a_full_disk_loses_nothing(tmp_path, capsys):
    import resource

    source, out = save_crowd(tmp_path / "photos", 3), tmp_path / "set"
    assert run(source, out, "--size=64", "--shard-size=2") == 0
    whole = contents(out)
    size = len(whole["train-000000.tar"])
    shutil.rmtree(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, hard))
        assert run(source, out, "--size=64", "--shard-size=4") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Make room on that disk" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["progress.jsonl"]
    shutil.rmtree(out)
    assert run(source, out, "--size=64", "--shard-size=2") == 0
    assert contents(out) == whole


def test_people_added_later_are_built_alone(tmp_path, capsys):
    source, out = save_crowd(tmp_path / "photos", 1), tmp_path / "set"
    assert run(source, out, "--size=64") == 0
    save_person(source, "a newcomer", faces()["hopper"])
    assert run(source, out, "--size=64") == 0
    assert list(SampleIndex(out).people) == ["person 0", "a newcomer"]
    assert "2 of 2 people" in capsys.readouterr().out


# --- what a person can mend ------------------------------------------------------------------------------------------


def refused(capsys, *arguments, **more):
    """What the command says when it ends with 2."""
    assert run(*arguments, **more) == 2
    return capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert f"There is no folder {tmp_path / 'photos'}" in refused(capsys, tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photos_is_refused(tmp_path, capsys):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    assert "holds no photo in a folder of a person" in refused(capsys, tmp_path / "photos", tmp_path / "out")


def test_photos_without_folders_are_explained(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    faces()["actor"].save(tmp_path / "photos" / "1.png")
    assert "holds 1 photos, but none in a folder" in refused(capsys, tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--size=500", "--size is 500; the VAE needs a multiple of 8"),
        ("--min-face=0", "--min-face is 0"),
        ("--sharpness=nan", "--sharpness is nan"),
        ("--agreement=2", "--agreement is 2"),
        ("--workers=0", "--workers is 0"),
        ("--shard-size=0", "--shard-size is 0"),
    ],
)
def test_an_impossible_option_is_named(source, tmp_path, capsys, option, said):
    assert said in refused(capsys, source, tmp_path / "out", option)


def test_no_pack_says_where_to_get_one(source, tmp_path, capsys):
    said = refused(capsys, source, tmp_path / "out", pack=tmp_path)
    assert f"There is no InsightFace pack in {tmp_path}" in said
    assert "buffalo_l" in said


def test_a_pack_without_keypoints_is_refused(source, tmp_path, capsys):
    (tmp_path / "pack").mkdir()
    for pattern in ("scrfd*", "w600k*"):
        shutil.copy(next(Path(PACK).glob(pattern)), tmp_path / "pack")
    said = refused(capsys, source, tmp_path / "out", pack=tmp_path / "pack")
    assert "no model for the 106 keypoints" in said


def test_other_settings_do_not_go_into_the_same_data_set(built, source, capsys):
    before = contents(built)
    said = refused(capsys, source, built, "--shard-size=4", "--size=256", "--min-face=64")
    assert "other settings: size 512 (now 256), min_face 128 (now 64)" in said
    assert contents(built) == before


def test_other_photos_do_not_go_into_the_same_data_set(built, tmp_path, capsys):
    before = contents(built)
    source = save_crowd(tmp_path / "photos", 1)
    said = refused(capsys, source, built, "--shard-size=4")
    assert "of 4 people in it 4 differ; actor is not there" in said
    assert contents(built) == before


def test_photos_that_changed_are_noticed(tmp_path, capsys):
    source, out = save_crowd(tmp_path / "photos", 2), tmp_path / "set"
    assert run(source, out, "--size=64") == 0
    (source / "person 1" / "plain.jpg").unlink()
    assert "person 1 has other photos now" in refused(capsys, source, out, "--size=64")


def test_a_folder_with_other_files_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not empty and holds no data set" in refused(capsys, source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_data_set_does_not_go_among_the_photos(source, capsys):
    assert "lies in the folder of photos" in refused(capsys, source, source / "set")


def test_photos_without_a_single_good_one_give_an_empty_data_set(tmp_path, capsys):
    (tmp_path / "photos" / "anna").mkdir(parents=True)
    (tmp_path / "photos" / "anna" / "1.jpg").write_text("no picture")
    assert run(tmp_path / "photos", tmp_path / "out") == 0
    assert "0 of 1 people, 0 of 1 photos" in capsys.readouterr().out
    assert list(read_samples(tmp_path / "out")) == []


def test_help_explains_the_folders(capsys):
    with pytest.raises(SystemExit):
        command.main(["build", "--help"])
    said = capsys.readouterr().out
    assert "photos/anna/1.jpg" in said
    assert "goes on when the same command is given again" in said
