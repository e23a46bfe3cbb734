"""The last training of the miniature's UNet, adapter and IMR: with ArcFace losses, and on roll-outs."""

import dataclasses
from itertools import islice, pairwise

import pytest
import torch
from safetensors.torch import load_file

from dynamicid_core.checkpoint import ADAPTER_FILE, IMR_FILE, KEYPOINT_ENCODER_FILE
from dynamicid_core.comfy_host import miniature
from dynamicid_core.errors import InputError
from dynamicid_core.face_packs import open_pack
from dynamicid_core.training import stages
from dynamicid_core.training.data.shards import SampleIndex
from dynamicid_core.training.miniature import likeness, perception
from dynamicid_core.training.miniature.denoising import DenoisingStage, read_scenes
from dynamicid_core.training.miniature.edits import Editor
from dynamicid_core.training.miniature.together import TogetherStage
from dynamicid_core.training.miniature.workspace import PEOPLE
from dynamicid_core.training.stages import unconditional_tokens
from tests.host.miniature_recipe import anchor_stage_parts, batches, perturb
from tests.photos import astronaut


@pytest.fixture(scope="module")
def arcface(workspace):
    return perception.open_perception(workspace.pack, torch.device("cpu"))


def test_arcface_with_gradients_sees_what_insightface_sees(workspace, arcface):
    photo, analysis = astronaut(), open_pack(workspace.pack, "CPU")
    face = analysis.detect(photo)[0]
    picture = torch.from_numpy(photo.copy())[None].float() / 255
    keypoints = torch.from_numpy(face.keypoints)[None] / torch.tensor(photo.shape[1::-1])
    seen = arcface(picture, keypoints)
    assert float(seen.embeddings[0] @ torch.from_numpy(analysis.embed(photo, face))) > 0.9
    assert [feature.shape[-1] for feature in seen.features] == [56, 28, 14, 7]
    blurred = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 9, 1, 4).movedim(1, -1)
    assert float(perception.feature_errors(seen, seen)) == pytest.approx(0, abs=1e-5)
    assert float(perception.feature_errors(arcface(blurred, keypoints), seen)) > 0.1


def test_a_pack_with_another_recognition_model_is_reported(workspace, monkeypatch):
    monkeypatch.setattr(perception, "_LAYERS", ("Conv_0", "layer4"))
    with pytest.raises(
        InputError, match=r"is not w600k_mbf: it has no layer layer4\. Give InsightFace's pack buffalo_s"
    ):
        perception.open_perception(workspace.pack, torch.device("cpu"))


@pytest.fixture(scope="module")
def likeness_stage(workspace, arcface):
    denoiser, encoders, source, config = anchor_stage_parts(workspace)
    files = [workspace.stage_folder("reconfiguration") / file for file in (IMR_FILE, KEYPOINT_ENCODER_FILE)]
    editor = Editor(*stages.open_motion_networks(*files))
    known = perception.known_identities(workspace.data_folder(PEOPLE))
    stage = likeness.LikenessStage(denoiser, encoders, source, config, editor, arcface, known)
    for network in (stage.network.adapter, editor.imr, denoiser.network):
        perturb(network, 0.02)
    denoiser.network.requires_grad_(True)
    return stage


@pytest.fixture
def late_batch(likeness_stage):
    """A batch with so little noise that ArcFace sees its faces."""
    batch = batches(likeness_stage, 1)[0]
    assert 0 < len(batch.edits.rows) < 4
    return dataclasses.replace(batch, timesteps=torch.full_like(batch.timesteps, 300), regions=(None,) * 4)


def test_self_attention_and_its_low_rank_updates_stay_as_they_were_and_the_rest_learns(workspace):
    def changed(file, is_kept):
        before, after = (load_file(workspace.stage_folder(name) / file) for name in ("together", "more_likeness"))
        names = {name for name in before if not torch.equal(before[name], after[name])}
        kept = {name for name in before if is_kept(name)}
        assert kept
        return names & kept, names - kept

    def is_own_update(name):
        return "_lora" in name and int(name.split(".")[1]) % 2 == 0

    kept, rest = changed(miniature.UNET_FILE, lambda name: ".attn1." in name)
    assert not kept
    assert any(".attn2." in name for name in rest)
    kept, rest = changed(ADAPTER_FILE, is_own_update)
    assert not kept
    assert any("_lora" in name for name in rest)


def test_the_unet_alone_sees_the_photos_to_paint_and_the_configured_share_of_scenes(workspace, likeness_stage):
    denoiser, encoders, source, config = anchor_stage_parts(workspace)
    scenes = read_scenes(workspace.data_folder(PEOPLE) / "groups")
    for share, wide in ((0.0, False), (1.0, True)):
        unet_only = DenoisingStage(denoiser, encoders, source, scenes, config, scene_share=share)
        stage = TogetherStage(denoiser, unet_only, likeness_stage, unet_only_every=3)
        raw = list(islice(stage.raw_batches(0, 1), 7))
        assert [of_unet for of_unet, _ in raw] == [True, False, False, True, False, False, True]
        made = [stage.make_batch(one, torch.Generator().manual_seed(0), torch.device("cpu")) for one in raw[:2]]
        assert (made[0].latents.shape[-1] > made[1].latents.shape[-1]) == wide
        if not wide:
            painted = torch.stack([torch.from_numpy(target.picture.copy()) for _, target in raw[0][1]]) / 255
            torch.testing.assert_close(made[0].latents, encoders.latents(painted))


def test_the_imr_learns_and_the_keypoint_encoder_does_not(workspace):
    names = ("reconfiguration", "likeness", "more_likeness")
    made = [load_file(workspace.stage_folder(name) / IMR_FILE) for name in names]
    for before, after in pairwise(made):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not (workspace.stage_folder("likeness") / KEYPOINT_ENCODER_FILE).exists()
    assert_same_halves(workspace, IMR_FILE, made[-1])


@pytest.mark.parametrize("file", [miniature.UNET_FILE, ADAPTER_FILE])
def test_unet_and_adapter_are_shipped_half_way_between_both_trainings(workspace, file):
    first, last = (load_file(workspace.stage_folder(name) / file) for name in ("likeness", "more_likeness"))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert_same_halves(workspace, file, {name: (value + last[name]) / 2 for name, value in first.items()})


def assert_same_halves(workspace, file, expected):
    found = load_file(workspace.out / "miniature" / file)
    torch.testing.assert_close(found, {name: tensor.half() for name, tensor in expected.items()})


def test_some_people_are_painted_by_edited_tokens_and_the_others_by_those_of_the_photo(likeness_stage, late_batch):
    network, edits = likeness_stage.network, late_batch.edits
    with torch.no_grad():
        tokens = network.tokens(late_batch)
        own = network.adapter.tokens(late_batch.embeddings, late_batch.clip_features)
    torch.testing.assert_close(tokens[edits.rows], network.editor(edits))
    others = [row for row in range(4) if row not in edits.rows.tolist()]
    assert torch.equal(tokens[others], own[others])
    assert (tokens[edits.rows] - own[edits.rows]).abs().amax() > 1e-3


def test_the_noise_loss_of_edited_tokens_trains_the_imr(likeness_stage, late_batch):
    network = likeness_stage.network
    network.zero_grad(set_to_none=True)
    network.noise_loss(late_batch, network.predict(late_batch, network.tokens(late_batch))).backward()
    assert all(p.grad is not None for p in network.editor.imr.parameters())
    names = {name for name, _ in network.named_parameters() if name.startswith("editor.")}
    assert names == {f"editor.imr.{name}" for name, _ in network.editor.imr.named_parameters()}


def test_pictures_with_gradients_are_those_without(likeness_stage):
    latents = torch.randn(2, miniature.LATENT_CHANNELS, 18, 16, generator=torch.Generator().manual_seed(0))
    with_gradients = likeness_stage._encoders.differentiable_pictures(latents.requires_grad_(True))
    torch.testing.assert_close(with_gradients, likeness_stage._encoders.pictures(latents), atol=1e-5, rtol=0)
    with_gradients.sum().backward()
    assert float(latents.grad.abs().sum()) > 0


def test_arcface_losses_train_unet_and_adapter_but_not_the_face_encoder(likeness_stage, late_batch):
    network = likeness_stage.network
    network.zero_grad(set_to_none=True)
    predicted = network.predict(late_batch, network.tokens(late_batch))
    sum(network._arcface_losses(late_batch, predicted).values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in likeness_stage._denoiser.network.parameters())
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("projections" in name for name in trained)
    assert not any("face_encoder" in name for name in trained)
    assert all(p.grad is None for p in likeness_stage._perception._network.parameters())


def test_the_true_noise_has_no_arcface_losses(likeness_stage, late_batch):
    with torch.no_grad():
        right = likeness_stage.network._arcface_losses(late_batch, late_batch.noise)
        worse = likeness_stage.network._arcface_losses(late_batch, torch.zeros_like(late_batch.noise))
    for name, nothing, much in (("features", 1e-3, 0.02), ("embedding", 1e-3, 0.02), ("unlike", 1e-4, 5e-4)):
        assert float(right[name]) == pytest.approx(0, abs=nothing), name
        assert float(worse[name]) > much, name


def test_very_noisy_and_dropped_faces_get_no_arcface_losses(likeness_stage, late_batch):
    early = dataclasses.replace(late_batch, timesteps=torch.full_like(late_batch.timesteps, 900))
    nobody = dataclasses.replace(late_batch, identities=torch.zeros_like(late_batch.identities))
    with torch.no_grad():
        whole, *others = (likeness_stage.network(batch) for batch in (late_batch, early, nobody))
    assert float(whole["features"]) > 0
    for losses in others:
        assert losses.keys() == whole.keys()
        assert all(float(losses[name]) == 0 for name in ("features", "embedding", "confused", "unlike"))
        torch.testing.assert_close(losses["loss"], losses["noise"] + losses["edited"])


@pytest.fixture
def strangers():
    """Identities of four people with something in common, as all faces have: cosines of 0.33."""
    shared = torch.nn.functional.one_hot(torch.tensor(9), 512).float()
    return torch.nn.functional.normalize(torch.eye(4, 512) + 0.7 * shared, dim=-1), shared


def test_faces_are_confused_where_one_threshold_does_not_separate_them(strangers):
    known, shared = strangers
    own = known[:2]
    wrong = {
        "far from everybody": torch.cat((0.4 * own, (1 - 0.4**2) ** 0.5 * torch.ones(2, 1)), dim=1),
        "near to everybody": torch.cat((torch.nn.functional.normalize(own + shared, dim=-1), torch.zeros(2, 1)), dim=1),
        "somebody else": torch.cat((own.flip(0), torch.zeros(2, 1)), dim=1),
    }
    own, known = (torch.nn.functional.pad(identities, (0, 1)) for identities in (own, known))
    losses = {name: likeness.confusion(faces, own, known) for name, faces in wrong.items()}
    assert all((loss > 3 * likeness.confusion(own, own, known)).all() for loss in losses.values())
    assert (losses["somebody else"] > losses["far from everybody"]).all()


def test_another_photo_of_a_person_is_not_to_be_distinguished_from_them(strangers):
    known, shared = strangers
    own = known[:1]
    alike = torch.nn.functional.normalize(own + 0.5 * shared, dim=-1)
    assert float(own @ alike.T) > 0.9
    torch.testing.assert_close(
        likeness.confusion(own, own, torch.cat((known, alike))), likeness.confusion(own, own, known)
    )
    assert float(likeness.confusion(own, own, own)) < 0.01


def test_the_worse_a_face_is_the_more_it_teaches():
    cosines = torch.tensor([[0.3], [0.8]])
    faces = torch.cat((cosines, (1 - cosines**2).sqrt(), torch.zeros(2, 510)), dim=1).requires_grad_(True)
    own, other = torch.eye(512)[:1].expand(2, -1), torch.eye(512)[2:3]
    likeness.confusion(faces, own, other).sum().backward()
    poor, good = faces.grad[:, 0].abs().tolist()
    assert poor > 5 * good


def test_known_identities_are_of_one_photo_per_person(workspace):
    known = perception.known_identities(workspace.data_folder(PEOPLE))
    index = SampleIndex(workspace.data_folder(PEOPLE))
    assert len(known) == len(index.people) > 1
    for identity, name in zip(known, index.people, strict=True):
        assert any(torch.equal(identity, torch.from_numpy(photo.embedding).float()) for photo in index.samples(name))


def test_edited_people_are_to_be_like_the_photo_that_is_edited_and_others_like_their_own(likeness_stage):
    raw = next(likeness_stage.raw_batches(0, 1))
    batch = likeness_stage.make_batch(raw, torch.Generator().manual_seed(3), torch.device("cpu"))
    edited = batch.edits.rows.tolist()
    assert edited
    for row, (source, target) in enumerate(raw):
        shown = source if row in edited else target
        expected = torch.from_numpy(shown.embedding).float() if batch.identities[row].any() else torch.zeros(512)
        torch.testing.assert_close(batch.sources[row], expected)


def test_faces_similar_to_nobody_or_to_everybody_are_errors(strangers):
    identities, shared = strangers
    true = identities[:2]

    def wrong(painted):
        outputs = (perception.ArcFaceOutput([], embeddings) for embeddings in (painted, true))
        return perception.similarity_errors(*outputs, identities)

    assert not wrong(true).any()
    for by in (-0.3, 0.3):
        assert (wrong(torch.nn.functional.normalize(true + by * shared, dim=-1)) > 1e-3).all()
    assert (wrong(true.roll(1, 0)) < wrong(torch.zeros_like(true))).all()


@pytest.fixture
def rollouts(likeness_stage, monkeypatch):
    """Batches, each with the UNet's inputs at every step of its roll-outs; its output is always the same."""
    guided = torch.randn(4, miniature.LATENT_CHANNELS, 18, 16, generator=torch.Generator().manual_seed(5))
    asked = []

    def guiding(batch, tokens, cfg):
        asked.append((batch, tokens, cfg, guided[: len(tokens)]))
        return guided[: len(tokens)]

    monkeypatch.setattr(likeness_stage._rollout, "guided", guiding)
    made = []
    for turn, raw in enumerate(islice(likeness_stage.raw_batches(0, 1), 40)):
        asked.clear()
        batch = likeness_stage.make_batch(raw, torch.Generator().manual_seed(turn), torch.device("cpu"))
        made.append((batch, list(asked)))
    return made


def test_some_pictures_are_rolled_out_to_less_noise_and_still_lead_to_their_latents(likeness_stage, rollouts):
    denoiser = likeness_stage._denoiser
    assert 0.25 < sum(int(batch.rolled_out.sum()) for batch, _ in rollouts) / 160 < 0.6
    for batch, steps in rollouts:
        rows = batch.rolled_out.nonzero().flatten()
        assert bool(len(rows)) == bool(steps)
        if not steps:
            continue
        start, _, _, guided = steps[0]
        assert (batch.timesteps[rows] <= start.timesteps).all()
        assert torch.equal(batch.latents[rows], start.latents)
        # What a sampler makes of the guided noise: the expected latents, with less of that noise.
        expected = denoiser.predict_clean(start.latents, start.noise, start.timesteps, guided)
        seen = denoiser.add_noise(batch.latents[rows], batch.noise[rows], batch.timesteps[rows])
        torch.testing.assert_close(
            seen, denoiser.add_noise(expected, guided, batch.timesteps[rows]), atol=3e-3, rtol=3e-3
        )
        early = (batch.timesteps >= 760).tolist()
        assert all(region is None or boosted for region, boosted in zip(batch.regions, early, strict=True))


def test_long_rollouts_start_from_much_noise_and_take_several_steps(rollouts):
    far = [steps for _, steps in rollouts if len(steps) > 1]
    near = [steps for _, steps in rollouts if len(steps) == 1]
    assert len(far) > len(near) > 3
    for steps in far:
        times = torch.stack([batch.timesteps for batch, *_ in steps])
        assert len(steps) == 3
        assert (times[0] >= 600).all()
        assert (times.diff(dim=0) <= 0).all()
    assert any((steps[0][0].timesteps < 600).any() for steps in near)


def test_pictures_are_rolled_out_with_any_cfg_and_sometimes_as_another_person(likeness_stage, rollouts):
    gone, swapped = 0, 0
    for batch, steps in rollouts:
        if steps:
            with torch.no_grad():
                own = likeness_stage.network.tokens(batch)[batch.rolled_out]
            gone += len(own)
            swapped += int((steps[-1][1] - own).abs().amax((1, 2)).gt(1e-4).sum())
    assert 0.05 < swapped / gone < 0.5
    cfg = torch.cat([cfg.flatten() for _, steps in rollouts for *_, cfg, _ in steps])
    assert 1 <= float(cfg.min()) < 2 < 3 < float(cfg.max()) <= 4


def test_the_noise_of_rolled_out_pictures_counts_half(likeness_stage, late_batch):
    network = likeness_stage.network
    with torch.no_grad():
        none, all_gone = (
            network(dataclasses.replace(late_batch, rolled_out=torch.full((4,), gone)))["noise"]
            for gone in (False, True)
        )
    torch.testing.assert_close(all_gone, none / 2)


def test_pictures_are_rolled_out_as_the_sampler_paints_them(likeness_stage, late_batch):
    network, encoders = likeness_stage.network, likeness_stage._encoders
    with torch.no_grad():
        tokens = network.tokens(late_batch)
        positive = network.predict(late_batch, tokens)
        nobody = unconditional_tokens(network.adapter, encoders).expand(4, -1, -1)
        without_text = dataclasses.replace(late_batch, context=encoders.contexts([""]).expand(4, -1, -1))
        negative = network.predict(without_text, nobody)
        guided = likeness_stage._rollout.guided(late_batch, tokens, torch.full((4, 1, 1, 1), 4.0))
    torch.testing.assert_close(guided, negative + 4 * (positive - negative), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(guided, positive, atol=1e-2)
