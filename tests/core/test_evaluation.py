"""What an evaluation writes and resumes from; nothing is painted here (see tests/host)."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.evaluation.__main__ import main, parse
from dynamicid_core.evaluation.results import Results
from dynamicid_core.evaluation.run import evaluate
from dynamicid_core.evaluation.settings import BASE, FULL, NO_GATE, NO_IMR, comparable_rows, settings_for
from dynamicid_core.evaluation.tables import make_tables
from tests.core.evaluated_faces import SIDE, FakePipeline, cases_of, row, run_evaluation, seen, unit

# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_pack_without_keypoints_is_reported_and_not_blamed_on_a_photo(references, tmp_path):
    class WithoutKeypoints(FakePipeline):
        def encode(self, photo):
            return replace(super().encode(photo), keypoints=None, pose=None)

    with pytest.raises(InputError, match=r"no model for keypoints .* as --pack") as raised:
        run_evaluation(WithoutKeypoints(), references, tmp_path / "out")
    assert "reference" not in str(raised.value)


def test_every_case_is_painted_with_every_setting_and_base_pictures_once(references, tmp_path):
    pipeline = FakePipeline()
    results = run_evaluation(pipeline, references, tmp_path / "out")
    base = {(case.base_key) for people in (1, 2) for case in cases_of(references, people)}
    assert len(pipeline.painted) == 2 * 4 * 3 + len(base)
    assert sum(row.setting == BASE.name for row in results.rows) == len(base)
    assert pipeline.edited == 2 * 4 * 1 + 2 * 4 * 2, "full and no_gate, one and two people"
    assert all((tmp_path / "out" / row.picture).is_file() for row in results.rows)
    full = [row for row in results.rows if row.setting == FULL.name]
    assert all(row.face_sim == pytest.approx(1) for row in full)
    assert {row.faces for row in full} == {1.0}
    assert {(row.people, row.in_place) for row in full} == {(1, None), (2, 0.5)}, "both faces are on the left"


@pytest.mark.parametrize("place", ["pictures", "results.csv"])
def test_a_place_that_cannot_be_written_is_reported(references, tmp_path, place):
    if place == "pictures":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / place).write_text("in the way")
    else:
        (tmp_path / "out" / f"{place}.part").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{place}.* could not be written: .*the same command then resumes"):
        run_evaluation(FakePipeline(), references, tmp_path / "out")


def test_pictures_without_editing_are_painted_once_for_all_motions(references, tmp_path):
    pipeline, settings = FakePipeline(), (FULL, NO_IMR)
    results = Results(tmp_path, {})
    cases = cases_of(references, 2, limit=70)
    latents = {(case.people, case.prompt, case.seed) for case in cases}
    evaluate(pipeline, references, cases, settings, results)
    assert sum(gate and people == 2 for people, gate, *_ in pipeline.painted) == 70 + len(latents)
    assert len(latents) == 30
    plain = [row for row in results.rows if row.setting == NO_IMR.name]
    assert [row.case for row in plain] == [case.key for case in cases]
    assert len({row.picture for row in plain}) == len(latents)
    (table,) = make_tables(results.rows)
    assert [line.pictures for line in table.lines] == [70, 30, len({case.base_key for case in cases})]


@pytest.mark.parametrize("faces", [0, 1, 2])
def test_the_row_of_another_motion_is_the_one_that_its_own_picture_would_have(references, tmp_path, faces):
    pipeline = FakePipeline()
    shown = [seen(unit(1), 8, "sad", (15.0, 0, 0)), seen(unit(0, 1), 20, "happy")]
    pipeline.find_faces = lambda photo: shown[:faces]
    cases = cases_of(references, 2, limit=70)
    evaluate(pipeline, references, cases, [NO_IMR], Results(tmp_path / "together", {}))
    results = Results(tmp_path / "each", {})
    for case in cases:
        alone = Results(tmp_path / case.key, {})
        evaluate(pipeline, references, [case], [NO_IMR], alone)
        results.rows += [row for row in alone.rows if row.setting == NO_IMR.name]
    together = [row for row in Results(tmp_path / "together", {}).rows if row.setting == NO_IMR.name]
    assert together == results.rows
    assert len({(row.expression, row.pose) for row in together}) > (1 if faces else 0)


def test_pictures_of_an_earlier_run_serve_for_other_motions_as_long_as_they_are_there(references, tmp_path):
    cases = cases_of(references, 1, limit=60)
    evaluate(FakePipeline(), references, cases[:30], [NO_IMR], Results(tmp_path, {}))
    gone = Results(tmp_path, {}).rows[-1]
    (tmp_path / gone.picture).unlink()
    pipeline = FakePipeline()
    evaluate(pipeline, references, cases, [NO_IMR], Results(tmp_path, {}))
    assert pipeline.painted == [(1, True, gone.prompt, gone.seed)]
    assert sum(row.setting == NO_IMR.name for row in Results(tmp_path, {}).rows) == 60


def test_settings_without_an_imr_need_no_editing():
    assert not any(setting.edit for setting in settings_for(imr=False))
    assert settings_for(imr=True) == (FULL, NO_GATE, NO_IMR)


def test_an_interrupted_run_paints_only_the_rest(references, tmp_path):
    whole = run_evaluation(FakePipeline(), references, tmp_path / "whole")
    interrupted = FakePipeline(stop_after=11)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(interrupted, references, tmp_path / "parts")
    with (tmp_path / "parts" / "results.csv").open("a", encoding="utf-8") as file:
        file.write("full,half a ro")  # as a killed process leaves it
    rest = FakePipeline()
    parts = run_evaluation(rest, references, tmp_path / "parts")
    assert len(interrupted.painted) + len(rest.painted) == len(whole.rows)
    assert parts.rows == whole.rows
    again = FakePipeline()
    run_evaluation(again, references, tmp_path / "parts")
    assert again.painted == []


def test_a_base_picture_without_a_row_is_painted_again(references, tmp_path):
    """A run with other settings was killed between the two."""
    for key in {case.base_key for case in cases_of(references, 1)}:
        stale = tmp_path / "out" / "pictures" / BASE.name / f"{key}.png"
        stale.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), "red").save(stale)
    results = run_evaluation(FakePipeline(), references, tmp_path / "out", people=(1,))
    bases = [row for row in results.rows if row.setting == BASE.name]
    assert bases
    assert not any(np.asarray(Image.open(tmp_path / "out" / row.picture)).any() for row in bases)


def test_rows_come_back_from_the_file_as_they_were(references, tmp_path):
    written = run_evaluation(FakePipeline(), references, tmp_path / "out").rows
    read = Results(tmp_path / "out", {"steps": 2}).rows
    assert [row.case for row in read] == [row.case for row in written]
    assert read[0].face_sim is None, "of the base model"
    assert read[1].names == written[1].names
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(written)


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\n", "\r", "\r\n"])
def test_names_with_signs_that_end_a_line_come_back_from_the_file(tmp_path, sign):
    Results(tmp_path, {}).add(row(names=f"an{sign}na"))
    with (tmp_path / "results.csv").open("a", encoding="utf-8") as file:
        file.write("full,half a ro")  # as a killed process leaves it
    assert [one.names for one in Results(tmp_path, {}).rows] == [f"an{sign}na"]


def test_rows_saved_by_a_spreadsheet_are_read(tmp_path):
    Results(tmp_path, {}).add(row())
    file = tmp_path / "results.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Results(tmp_path, {}).rows == [row()]


def test_another_evaluation_in_the_folder_is_not_mixed_in(references, tmp_path):
    run_evaluation(FakePipeline(), references, tmp_path / "out")
    with pytest.raises(InputError, match="holds another evaluation: steps differ"):
        Results(tmp_path / "out", {"steps": 3})
    Results(tmp_path / "out", {"steps": 2, "photo of dora": "new"})
    with pytest.raises(InputError, match="photo of dora differ"):
        Results(tmp_path / "out", {"steps": 2, "photo of dora": "newer"})


def test_settings_without_rows_bind_nobody(tmp_path):
    Results(tmp_path, {"steps": 2})
    assert Results(tmp_path, {"steps": 3}).rows == []


def test_a_reference_without_a_face_is_named(references, tmp_path):
    pipeline = FakePipeline()

    def encode(photo):
        raise InputError("No face found in the photo.")

    pipeline.encode = encode
    with pytest.raises(InputError, match=r"No face found in the photo\. \(reference \w+: .*\.png\)"):
        run_evaluation(pipeline, references, tmp_path / "out")
    assert pipeline.painted == []


def test_settings_of_all_runs_into_a_folder_are_kept(references, tmp_path):
    run_evaluation(FakePipeline(), references, tmp_path / "out")
    Results(tmp_path / "out", {"steps": 2, "photo of dora": "new"})
    Results(tmp_path / "out", {"steps": 2})
    with pytest.raises(InputError, match="photo of dora differ"):
        Results(tmp_path / "out", {"steps": 2, "photo of dora": "newer"})


def test_a_case_that_a_setting_lacks_counts_for_none(references, tmp_path):
    rows = run_evaluation(FakePipeline(), references, tmp_path / "out", people=(1,)).rows
    first, *others = cases_of(references, 1)
    lacking = [row for row in rows if (row.setting, row.case) != (NO_GATE.name, first.key)]
    kept = comparable_rows(lacking, [first, *others], (FULL, NO_GATE, NO_IMR))
    assert {row.case for row in kept if row.setting != BASE.name} == {case.key for case in others}
    assert {row.case for row in kept if row.setting == BASE.name} == {case.base_key for case in others}


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, references):
    for name in ("base", "vision", "adapter", "imr", "kpe"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "one.onnx").touch()

    def arguments(**changes):
        given = {
            "references": "photos", "out": "out", "base-model": "base", "clip-vision": "vision", "adapter": "adapter",
            "pack": "pack", **changes,
        }  # fmt: skip
        return [
            part
            for name, value in given.items()
            for part in (f"--{name}", str(tmp_path / value if isinstance(value, str) else value))
        ]

    return arguments


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": "nowhere"}, "There is no folder"),
        ({"references": "empty"}, "has no photos"),
        ({"references": "pack"}, "one.onnx could not be read as a picture .*taken for the photo of one"),
        ({"base-model": "nowhere"}, "There is no file .*nowhere \\(--base-model\\)"),
        ({"clip-vision": "nowhere"}, "\\(--clip-vision\\)"),
        ({"adapter": "nowhere"}, "\\(--adapter\\)"),
        ({"clip-score": "nowhere"}, "\\(--clip-score\\)"),
        ({"pack": "photos"}, "no InsightFace pack in .*photos. Name"),
        ({"threshold": 2}, "threshold is 2"),
        ({"imr": "imr"}, "give both --imr and --keypoint-encoder"),
        ({}, "adapter"),
    ],
)
def test_what_is_missing_is_one_message_and_exit_code_2(command, capsys, changes, said):
    assert main(command(**changes)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert re.search(said, err), err


def test_pressing_ctrl_c_says_that_it_goes_on(command, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dynamicid_core.evaluation.__main__._open_pipeline", interrupted)
    assert main(command()) == 130
    assert "the same command resumes from here" in capsys.readouterr().err


def test_the_tables_are_of_the_cases_of_the_command_whatever_else_is_in_the_folder(
    command, references, tmp_path, monkeypatch
):
    options = [*command(imr="imr", **{"keypoint-encoder": "kpe"}), "--people", "1"]
    pipelines = iter([FakePipeline(stop_after=14), FakePipeline()])
    monkeypatch.setattr("dynamicid_core.evaluation.__main__._open_pipeline", lambda _: next(pipelines))
    assert main([*options, "--seeds", "2", "--limit", "9"]) == 130
    assert main([*options, "--limit", "4"]) == 0
    base = len({case.base_key for case in cases_of(references, 1)})
    lines = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8").splitlines()
    pictures = [
        line.split("|")[-2].strip()
        for line in lines
        if line.startswith("|") and not re.search("paper|difference", line)
    ]
    assert pictures[2:] == ["4", "4", "4", str(base)]
    assert Image.open(tmp_path / "out" / "sheet_1.jpg").height == 4 * 278


@pytest.mark.parametrize(
    ("file", "other", "said"),
    [
        ("base", bytes(2 << 20) + b"1" + bytes((2 << 20) - 1), "base_model differ"),  # in the middle
        ("pack/one.onnx", bytes(1), "pack differ"),
    ],
)
def test_another_file_of_the_same_name_is_another_evaluation(command, tmp_path, monkeypatch, capsys, file, other, said):
    monkeypatch.setattr("dynamicid_core.evaluation.__main__._open_pipeline", lambda _: FakePipeline())
    options = [*command(imr="imr", **{"keypoint-encoder": "kpe"}), "--people", "1", "--limit", "1"]
    (tmp_path / file).write_bytes(bytes(4 << 20))
    assert main(options) == 0
    (tmp_path / file).write_bytes(other)
    assert main(options) == 2
    assert f"holds another evaluation: {said}" in capsys.readouterr().err


def test_options_are_read(command):
    options = parse([*command(), "--people", "3,1", "--size", "640x512"])
    assert (options.people, options.size, options.steps, options.limit) == ([1, 3], (640, 512), 50, 280)


@pytest.mark.parametrize("wrong", [["--people", "1;2"], ["--size", "512"]])
def test_options_that_cannot_be_read_are_refused(command, wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([*command(), *wrong])
    assert "such as" in capsys.readouterr().err
