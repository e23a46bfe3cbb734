"""What the recipe measures of the miniature, and how measuring resumes."""

import pytest
import torch

from dynamicid_core.comfy_host import miniature
from dynamicid_core.face import Face
from dynamicid_core.training.miniature import measure, measurement_cache, recipe, report
from dynamicid_core.training.miniature.bench import FULL, SETTINGS, Bench
from dynamicid_core.training.miniature.workspace import Effort


@pytest.mark.slow_in_oldest
def test_measuring_leaves_tables_and_pictures_to_look_at(workspace, monkeypatch):
    recipe.run_stages(workspace, ["measure"])
    folder = workspace.out / "measured"
    text = (folder / "tables.md").read_text(encoding="utf-8")
    assert [setting.label for setting in SETTINGS if setting.label not in text] == []
    assert {file.name for file in folder.iterdir()} >= {"figures.json", "steps.png", "people_1.jpg", "people_2.jpg"}
    monkeypatch.setattr(Bench, "paint", lambda *_: pytest.fail("painted again"))
    (folder / "tables.md").unlink()
    recipe.run_stages(workspace, ["measure"])
    assert (folder / "tables.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("sampler", "scheduler", "made"), [("euler", "normal", 6), ("ddim", "ddim_uniform", 7)])
def test_the_steps_in_the_table_are_those_that_the_sampler_makes(sampler, scheduler, made):
    loaded, calls = miniature.load_miniature(), []
    loaded.model.set_model_unet_function_wrapper(
        lambda apply_model, given: calls.append(1) or apply_model(given["input"], given["timestep"], **given["c"])
    )
    bench = Bench(loaded, None, None, steps=6, sampler=sampler, scheduler=scheduler)
    face = Face(torch.zeros(1, 4, 128), torch.zeros(1, 4, 128), "miniature")
    bench.paint([face], FULL, "a person", seed=1)
    assert bench.unet_steps == len(calls) == made


def test_a_measurement_is_kept_for_the_weights_that_were_measured(tmp_path):
    weights = tmp_path / "unet.safetensors"
    weights.write_bytes(b"trained")
    asked = []

    def measured(settings):
        cache = measurement_cache.MeasurementCache(tmp_path, [weights], settings)
        return cache.get_or_measure("1-0-000", lambda: asked.append(1) or {"own": 0.1 + 0.2})

    assert measured([60, 8]) == measured([60, 8]) == {"own": 0.1 + 0.2}
    assert len(asked) == 1
    measured([60, 9])
    weights.write_bytes(b"trained on")
    measured([60, 8])
    assert len(asked) == 3
    for file in tmp_path.rglob("1-0-000.json"):
        file.write_bytes(b"")  # as after a crash
    assert measured([60, 8]) == {"own": 0.1 + 0.2}


def test_auc_is_how_often_one_of_the_first_is_above_one_of_the_second():
    assert measure.auc([0.9, 0.8], [0.1, 0.2]) == 1
    assert measure.auc([0.1], [0.9, 0.2]) == 0
    assert measure.auc([0.5, 0.1], [0.5, 0.3]) == 0.375
    assert measure.auc([], [0.5]) == 0.5


def test_a_picture_in_which_all_people_seem_far_costs_auc_but_not_the_auc_in_a_picture():
    def found(own, others):
        return measure.Finding("", 1, own, others, True, True, True, True, True, False)

    summary = measure.summary([found(0.9, [0.7, 0.8]), found(0.3, [0.1, 0.2]), found(None, [])])
    assert summary["auc in a picture"] == 1
    assert summary["auc"] == 0.75
    assert summary["found"] == pytest.approx(2 / 3)


def test_every_expression_is_asked_for_once_to_each_side():
    cases = range(Effort().measured[1])
    asked = [motion for case in cases for motion in measure.motions_asked(case, 1) if motion.pose == "side"]
    assert len({(motion.expression, motion.right) for motion in asked}) == len(asked) == 14


def test_turning_to_either_side_is_reported():
    def found(pose, right):
        return measure.Finding(FULL.label, 1, 0.5, [0.1], True, True, pose, True, True, False, right)

    findings = [found(True, True), found(True, True), found(True, False), found(False, False), found(False, None)]
    summary = measure.summary(findings)
    assert (summary["pose to the right"], summary["pose to the left"], summary["pose"]) == (1, 0.5, 0.6)
    title, _, row, *_ = report.tables({}, findings, [], 1).split("### One person")[1].splitlines()[2:]
    assert dict(zip(title.split("|"), row.split("|"), strict=True))[" Pose to the left "] == " 0.500 "
    assert "pose to the left" not in measure.summary(findings[:2])
