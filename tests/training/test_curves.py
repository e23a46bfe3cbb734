"""The metrics of a run, in a file that survives interruptions, full disks and spreadsheets."""

import csv
import math

import numpy as np
import pytest

from dynamicid_core.training import curves
from dynamicid_core.training.curves import Metrics, running_mean


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def test_rows_are_added_and_later_ones_are_dropped_when_a_run_goes_on(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        metrics.add(step, {"loss": step / 4})
    Metrics(tmp_path, 2).add(3, {"loss": 9.0})
    assert rows(tmp_path) == [{"step": s, "loss": x} for s, x in (("1", "0.25"), ("2", "0.5"), ("3", "9.0"))]


def test_a_new_figure_gets_a_column(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.add(1, {"loss": 0.5})
    metrics.add(2, {"loss": 0.5, "likeness": 0.25})
    metrics.add(3, {"loss": 0.125})
    assert [row["likeness"] for row in rows(tmp_path)] == ["", "0.25", ""]


def test_half_a_row_is_left_out_when_a_run_goes_on(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,1e-")
    Metrics(tmp_path, 2).add(2, {"loss": 0.25})
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5", "0.25"]


def test_rows_saved_by_a_spreadsheet_stay_when_a_run_goes_on(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n", encoding="utf-8-sig")
    Metrics(tmp_path, 1)
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5"]


@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 1), (7, 3), (9, 3), (5, 5), (4, 9), (200, 10), (199, 10)])
def test_a_running_mean_is_that_of_each_value_and_those_before_it(count, width):
    values = np.random.default_rng(count).normal(1, 1, count).tolist()
    direct = [np.mean(values[max(0, i - width + 1) : i + 1]) for i in range(count)]
    assert running_mean(values, width) == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -1e30])
def test_a_huge_or_non_finite_value_affects_only_its_own_means(odd):
    values = [1.0, 2.0, 3.0, odd, 5.0, 6.0, 7.0, 8.0]
    expected = [1.0, 1.5, 2.5, odd / 2, odd / 2, 5.5, 6.5, 7.5]
    assert running_mean(values, 2) == pytest.approx(expected, nan_ok=True)


def test_the_mean_of_a_curve_passes_over_rows_without_the_figure(tmp_path, monkeypatch):
    metrics, averaged = Metrics(tmp_path, 0), []
    monkeypatch.setattr(curves, "running_mean", lambda values, width: averaged.append(values) or values)
    for step, spread in enumerate((0.5, math.nan, 0.25), start=1):
        metrics.add(step, {"loss": 1.0, "token_spread": spread})
    metrics.draw()
    assert averaged == [[1.0, 1.0, 1.0], [0.5, 0.25]]
    assert [row["token_spread"] for row in rows(tmp_path)] == ["0.5", "nan", "0.25"]


def fill_disk(tmp_path, monkeypatch):
    really_open = type(tmp_path).open

    def full(path, mode="r", *others, **named):
        if mode != "r":
            raise OSError(28, "No space left on device")
        return really_open(path, mode, *others, **named)

    monkeypatch.setattr(type(tmp_path), "open", full)


def test_a_disk_that_is_full_from_the_beginning_is_reported_and_the_rows_stay(tmp_path, monkeypatch):
    Metrics(tmp_path, 0).add(1, {"loss": 0.5})
    fill_disk(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"metrics\.\w+, could not be written: No space left on device\. Free"):
        Metrics(tmp_path, 1)
    monkeypatch.undo()
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5"]


@pytest.mark.parametrize("figures", [{"loss": 0.25}, {"loss": 0.25, "likeness": 0.5}])
def test_rows_that_find_the_disk_full_are_written_with_the_next(tmp_path, monkeypatch, caplog, figures):
    metrics = Metrics(tmp_path, 0)
    metrics.add(1, {"loss": 0.5})
    fill_disk(tmp_path, monkeypatch)
    metrics.add(2, figures)
    monkeypatch.undo()
    assert "No space left on device" in caplog.text
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5"]
    metrics.add(3, {"loss": 0.125})
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5", "0.25", "0.125"]


def test_the_last_row_that_found_the_disk_full_is_written_with_the_curves(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path, 0)
    fill_disk(tmp_path, monkeypatch)
    metrics.add(1, {"loss": 0.5})
    monkeypatch.undo()
    metrics.draw()
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5"]


def test_curves_that_cannot_be_written_end_no_training(tmp_path, caplog):
    (tmp_path / "curves.png").mkdir()
    metrics = Metrics(tmp_path, 0)
    metrics.add(1, {"loss": 0.5})
    metrics.draw()
    assert "curves.png could not be written" in caplog.text
