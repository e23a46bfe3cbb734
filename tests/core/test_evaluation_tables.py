"""Tables, plots and sheets of an evaluation."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.drawing import wrap_text
from dynamicid_core.evaluation.cases import plan
from dynamicid_core.evaluation.plots import draw_bars, draw_sheets
from dynamicid_core.evaluation.settings import BASE, FULL, NO_GATE, NO_IMR, comparable_rows
from dynamicid_core.evaluation.tables import NO_CLIP_T, PAPER, estimate, make_tables, render
from tests.core.evaluated_faces import FakePipeline, row, run_evaluation


def test_the_interval_is_the_bootstrap_of_the_mean():
    values = np.random.default_rng(3).normal(0.4, 0.1, 400)
    found = estimate([[value] for value in values])
    assert found.mean == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert estimate([[value] for value in values]) == found


def test_values_of_one_group_count_as_one_in_the_interval():
    values = np.random.default_rng(3).normal(0.4, 0.1, 50)
    once, often = (estimate([[value] * times for value in values]) for times in (1, 10))
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high))


def test_a_group_of_many_values_weighs_more_in_the_mean():
    assert estimate([[1.0, 1.0, 1.0], [0.0]]).mean == 0.75


def test_cases_that_differ_in_the_motion_only_are_one_group():
    scenes = [row(NO_IMR, face_sim=value, prompt=f"p{i}") for i, value in enumerate((0.2, 0.3, 0.6))]
    repeated = [replace(one, case=f"c{i}") for one in scenes for i in range(10)]
    (once,), (often,) = make_tables(scenes), make_tables(repeated)
    assert str(often.lines[0].measured["face_sim"]) == str(once.lines[0].measured["face_sim"])
    (others,) = make_tables([replace(one, names=f"{i}") for i, one in enumerate(repeated)])
    assert others.lines[0].measured["face_sim"].high < once.lines[0].measured["face_sim"].high


def test_one_picture_has_an_interval_of_no_width():
    assert str(estimate([[0.5]])) == "0.500 (0.500 to 0.500)"


def test_settings_are_compared_case_by_case():
    values = np.random.default_rng(3).normal(0.5, 0.1, 20).tolist()
    rows = [
        row(setting, case=f"{i}", names=f"{i}", face_sim=value - less)
        for i, value in enumerate(values)
        for setting, less in ((FULL, 0.0), (NO_GATE, 0.125))
    ]
    tables = make_tables(rows)
    full, no_gate = tables[0].lines
    assert not full.differences
    assert str(no_gate.differences["face_sim"]) == "-0.125 (-0.125 to -0.125)"
    assert no_gate.measured["face_sim"].high > no_gate.measured["face_sim"].low + 0.05
    assert "difference to DynamicID" in render(tables)


def test_the_papers_figures_stand_beside_the_measured():
    rows = [row(), row(NO_GATE), row(NO_IMR), row(BASE, face_sim=None)]
    rows += [row(people=2, picture="2.png"), row(people=3, picture="3.png")]
    tables = make_tables(rows)
    assert [table.title for table in tables] == ["One person", "Several people", "2 people", "3 people"]
    text = render(tables)
    for figure in ("0.239", "0.671", "0.456", "0.878", "0.224", "0.161", "0.253", "0.237", "0.664", "0.431", "0.867"):
        assert text.count(figure) == 1, figure
    assert tables[1].lines[0].pictures == 2
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) <= 4, "columns of a table line up"
    assert NO_CLIP_T not in text


def test_a_missing_clip_t_is_reported_and_not_made_up():
    text = render(make_tables([row(clip_t=None)]))
    assert NO_CLIP_T in text
    assert [cell.strip() for cell in text.splitlines()[4].split("|")][2] == "-"


def test_paper_figures_are_for_settings_that_exist():
    assert {name for table in PAPER.values() for name in table} <= {one.name for one in (FULL, NO_GATE, NO_IMR)}


def test_plots_and_sheets_are_written(references, tmp_path):
    results = run_evaluation(FakePipeline(), references, tmp_path / "out")
    draw_bars(make_tables(results.rows), tmp_path / "out" / "bars.png")
    draw_sheets(results.rows, tmp_path / "out", references)
    assert (tmp_path / "out" / "bars.png").stat().st_size > 10_000
    assert Image.open(tmp_path / "out" / "sheet_1.jpg").size == ((1 + 1 + 3) * 256, 4 * 278)
    assert Image.open(tmp_path / "out" / "sheet_2.jpg").size == ((2 + 1 + 3) * 256, 4 * 278)


def test_captions_of_three_people_take_the_lines_they_need(references, tmp_path):
    asked = "surprised side; disgusted down; surprised front"
    one = row(people=3, names="anna; ben; cleo", asked=asked)
    draw_sheets([one], tmp_path, references)
    lines = wrap_text(f"full: {asked}", 13, 250)
    assert " ".join(lines) == f"full: {asked}"
    assert len(lines) == 2
    picture = np.asarray(Image.open(tmp_path / "sheet_3.jpg").convert("L"))
    assert picture.shape == (278 + 16, 5 * 256)
    caption = picture[256:, -256:]
    assert (caption[:19] < 100).any(), "first line"
    assert (caption[19:] < 100).any(), "second line"
    assert (caption[:, -4:] > 200).all(), "nothing is cut off"


def test_disruption_is_compared_over_cases_that_have_one_with_every_setting():
    """With one setting, faces cover a whole picture."""
    first, other = plan(["a", "b"], people=1, seeds=1, limit=2)
    found = {(FULL, first): None, (FULL, other): 0.1, (NO_IMR, first): 0.5, (NO_IMR, other): 0.3}
    rows = [row(setting, case=case.key, names=case.people[0], disruption=one) for (setting, case), one in found.items()]
    (table,) = make_tables(comparable_rows(rows, [first, other], (FULL, NO_IMR)))
    assert [line.measured["disruption"].mean for line in table.lines] == [0.1, 0.3]
    assert [line.measured["face_sim"].mean for line in table.lines] == [0.5, 0.5]


def test_a_measure_of_zero_counts_in_the_mean():
    (table,) = make_tables([row(pose=0.0), row(pose=1.0)])
    assert table.lines[0].measured["pose"].mean == 0.5
