"""What the miniature's IMR learns to edit: which tokens, to which motion."""

from itertools import islice

import pytest
import torch

from dynamicid_core.face_prompt import find_expression
from dynamicid_core.head import solve_pose
from dynamicid_core.imr import RASTER_SIZE
from dynamicid_core.keypoints import encoder_input
from dynamicid_core.training.miniature import edits, recipe
from dynamicid_core.training.reconfiguration import ReconfigureCollator
from dynamicid_core.training.stages import make_adapter
from tests.host.miniature_recipe import anchor_stage_parts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs_and_edits(workspace):
    """Pairs of the data, and their edits with many seeds."""
    denoiser, encoders, source, config = anchor_stage_parts(workspace)
    batches = edits.EditCollator(ReconfigureCollator(encoders, denoiser, make_adapter(denoiser, encoders, config), 0.0))
    pairs = list(islice(source.people(0, 1, 2), 4))
    shown = torch.tensor([True, True, True, False])
    return pairs, [batches.make(pairs, shown, torch.Generator().manual_seed(seed), CPU) for seed in range(40)]


def raster(sample):
    return encoder_input(torch.from_numpy(sample.keypoints))[0]


def test_half_of_the_people_are_edited_and_never_those_whose_faces_were_dropped(pairs_and_edits):
    rows = [[] if one is None else one.rows.tolist() for one in pairs_and_edits[1]]
    assert 0.35 < sum(map(len, rows)) / 120 < 0.65
    assert not any(3 in of_batch for of_batch in rows)
    assert [] in rows


def test_edits_go_from_the_other_photo_to_the_painted_one(pairs_and_edits):
    pairs, batches = pairs_and_edits
    for one in batches:
        for turn, row in enumerate([] if one is None else one.rows.tolist()):
            source, target = pairs[row]
            assert source.identity == target.identity
            assert source.key != target.key
            assert torch.equal(one.batch.source_rasters[turn], raster(source))
            assert one.batch.target_rasters[turn].shape == (1, RASTER_SIZE, RASTER_SIZE)


def test_half_of_the_edits_have_the_keypoints_that_the_editor_would_make(pairs_and_edits):
    pairs, batches = pairs_and_edits
    moved = measured = 0
    for one in batches:
        for turn, row in enumerate([] if one is None else one.rows.tolist()):
            seen = one.batch.target_rasters[turn]
            measured += torch.equal(seen, raster(pairs[row][1]))
            moved += torch.equal(seen, raster(edits.with_edited_keypoints(*pairs[row])))
    assert moved + measured == sum(len(one.rows) for one in batches if one is not None)
    assert 0.3 < moved / (moved + measured) < 0.7


def test_moved_keypoints_are_those_of_the_source_in_the_pose_of_the_target(pairs_and_edits):
    for source, target in pairs_and_edits[0]:
        moved = edits.with_edited_keypoints(source, target)
        assert (solve_pose(torch.from_numpy(moved.keypoints)) - torch.from_numpy(target.pose)).abs().max() < 12
        assert (moved.face_prompt, moved.key) == (target.face_prompt, target.key)
        low, high = (source.keypoints.min(0), source.keypoints.max(0))
        assert (moved.keypoints.min(0) + moved.keypoints.max(0)) / 2 == pytest.approx((low + high) / 2, abs=0.02)


def test_some_source_prompts_name_another_expression(pairs_and_edits):
    pairs = pairs_and_edits[0]
    prompts = []

    class Batches:
        def make(self, people, generator, device):
            prompts.extend((source.face_prompt, target.face_prompt) for source, target in people)

    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        edits.EditCollator(Batches()).make(pairs[:1], torch.tensor([True]), generator, CPU)
    source, target = pairs[0]
    assert {of_target for _, of_target in prompts} == {target.face_prompt}
    others = [prompt for prompt, _ in prompts if prompt != source.face_prompt]
    assert 0.1 < len(others) / len(prompts) < 0.4
    assert len({find_expression(prompt) for prompt in others}) > 2


def test_reconfiguration_moves_half_of_the_keypoints_and_misreads_some_sources(pairs_and_edits):
    people = [[source, target, target] for source, target in pairs_and_edits[0]]
    sources, targets = [], []
    for seed in range(40):
        asked = edits.simulate_edits(people, torch.Generator().manual_seed(seed))
        for (source, target, _), (asked_source, *asked_targets) in zip(people, asked, strict=True):
            sources.append(asked_source.face_prompt != source.face_prompt)
            targets += [one is not target for one in asked_targets]
            assert asked_source.key == source.key
            assert {one.key for one in asked_targets} == {target.key}
    assert 0.1 < sum(sources) / len(sources) < 0.4
    assert 0.35 < sum(targets) / len(targets) < 0.65


def test_the_recipe_trains_the_editor_on_what_the_nodes_ask_for(workspace, pairs_and_edits, monkeypatch):
    stages = []
    monkeypatch.setattr(recipe, "_run", lambda stage, config, cpu: stages.append(stage(config)))
    recipe.train_editor(workspace)
    pairs = pairs_and_edits[0]
    batch = stages[0].make_batch(pairs, torch.Generator().manual_seed(0), CPU)
    asked = edits.simulate_edits(pairs, torch.Generator().manual_seed(0))
    assert torch.equal(batch.target_rasters, torch.stack([raster(target) for _, target in asked]))
    assert not torch.equal(batch.target_rasters, torch.stack([raster(target) for _, target in pairs]))
