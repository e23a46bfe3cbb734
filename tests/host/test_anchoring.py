"""Anchoring on a tiny model of the host's own classes: losses, gradients, what it sees and learns."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import photos
from tests.host.graphs import tiny_clip, tiny_vae
from tests.host.helpers import apply, core, eps, run, sample, tiny_clip_vision, tiny_unet
from tests.host.training_helpers import (
    SIDE,
    ListSource,
    anchor_stage,
    assert_gradient_is_the_slope,
    config,
    first_batch,
    losses,
    make_samples,
    randomise,
    reconfigure_stage,
    train,
)


def test_the_noise_loss_is_that_of_the_model_with_the_nodes(tiny_models, tmp_path):
    """A checkpoint written in training computes in the nodes what it computed in the trainer."""
    stage, _ = anchor_stage(tiny_models, tmp_path, threshold=0.3, drop_text=0, drop_face=0, drop_both=0)
    randomise(stage.network)
    stage.network.eval()
    batch = first_batch(stage)
    batch.timesteps[:] = 501
    with torch.no_grad():
        trained = stage.network.predict(batch, stage.network.tokens(batch))
        tokens = stage.network.adapter.tokens(batch.embeddings, batch.clip_features)
    stage.save_weights(tmp_path)
    loaded = load(tmp_path)
    for row in range(len(trained)):
        face = core("face").Face(tokens[row : row + 1], tokens[row : row + 1], "token size 64")
        text = [[batch.context[row : row + 1], {}]]
        seen = tiny_models[0].add_noise(batch.latents, batch.noise, batch.timesteps)[row : row + 1]
        by_nodes = eps(*apply(loaded, face, positive=text, negative=text), seen)[1]
        torch.testing.assert_close(by_nodes, trained[row], atol=1e-4, rtol=0)
    with torch.no_grad():
        loss = float(stage.network(batch)["loss"])
    assert loss == pytest.approx(float(((trained - batch.noise) ** 2).mean()), rel=1e-5)


def test_the_trainer_paints_the_picture_that_the_nodes_paint(tiny_models, tmp_path):
    stage, _ = anchor_stage(tiny_models, tmp_path)
    randomise(stage.network)
    stage.network.eval()
    denoiser, encoders = tiny_models
    module = core("training.stages")
    samples = make_samples()[:1]
    tokens, nobody = module._tokens(stage.network.adapter, encoders, samples)
    context = encoders.texts([samples[0].caption, ""])[0]
    latent = torch.zeros(1, 4, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.manual_seed(1))
    settings, attention = core("saa").SaaSettings(), core("comfy_host.identity_patch").text_attention
    patches = stage.network.adapter.patches(torch.cat((tokens, nobody)), settings, attention)
    painted = denoiser.paint(noise, 3, 5.0, context, patches)
    stage.save_weights(tmp_path)
    face = core("face").Face(tokens, nobody, "token size 64")
    positive, negative = [[context[:1], {}]], [[context[1:], {}]]
    by_nodes = sample(*apply(load(tmp_path), face, positive=positive, negative=negative), latent, steps=3, seed=1)
    assert (by_nodes - sample(tiny_unet(), positive, negative, latent, steps=3, seed=1)).abs().max() > 0.1
    torch.testing.assert_close(painted, by_nodes, atol=2e-3, rtol=1e-4)  # of up to 31; processors round differently


def load(folder):
    import folder_paths

    target = f"{folder_paths.models_dir}/dynamicid/trained.safetensors"
    with open(folder / "adapter.safetensors", "rb") as source, open(target, "wb") as copy:
        copy.write(source.read())
    return run("DynamicIDLoader", adapter="trained.safetensors")[0]


def test_noise_is_added_as_the_schedule_says(tiny_models):
    denoiser = tiny_models[0]
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[[100, 900]].float().view(2, 1, 1, 1)
    expected = kept.sqrt() * latents * 0.18215 + (1 - kept).sqrt() * noise
    torch.testing.assert_close(
        denoiser.add_noise(latents, noise, torch.tensor([100, 900])), expected, atol=1e-4, rtol=0
    )


def test_a_new_adapter_leaves_the_unet_as_it_was_where_the_gate_is_closed(tiny_models, tmp_path):
    """Low-rank updates begin at zero, identity keys and values as those of the text."""
    stage, _ = anchor_stage(tiny_models, tmp_path)
    adapter, unet = stage.network.adapter, tiny_models[0].network.state_dict()
    layer = next(layer for layer in adapter.layers if layer.is_cross)
    own = adapter.projections.layers[str(layer.index)]
    assert torch.equal(own["to_k_ip"].weight, unet[f"{layer.path}.to_k.weight"])
    assert torch.equal(own["to_v_ip"].weight, unet[f"{layer.path}.to_v.weight"])
    assert all(not p.any() for name, p in adapter.updates.named_parameters() if ".up." in name)


def test_anchoring_gradients_are_the_slopes_of_the_loss(tiny_models, tmp_path):
    stage, _ = anchor_stage(tiny_models, tmp_path)
    randomise(stage.network)
    prefix = "adapter."
    assert_gradient_is_the_slope(
        stage,
        [
            f"{prefix}face_encoder.proj.2.weight",
            f"{prefix}projections.layers.1.to_k_ip.weight",
            f"{prefix}projections.layers.29.to_v_ip.weight",
            f"{prefix}updates.layers.0.to_q_lora.up.weight",
            f"{prefix}updates.layers.15.to_out_lora.down.weight",
        ],
    )


def test_gradient_checkpointing_changes_no_gradient(tiny_models, tmp_path):
    device, module = torch.device("cpu"), core("comfy_host.differentiable")
    grads = []
    for checkpointing in (False, True):
        denoiser = module.DenoisingModel(tiny_unet(), device, torch.float32, checkpointing)
        stage, _ = anchor_stage((denoiser, tiny_models[1]), tmp_path)
        randomise(stage.network)
        stage.network(first_batch(stage))["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in stage.network.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_texts_in_use_are_encoded_once_and_the_captions_of_a_large_data_set_do_not_fill_the_memory(monkeypatch):
    clip, encoded = tiny_clip(), Counter()
    encoders = core("comfy_host.differentiable").FrozenEncoders(None, clip, None, torch.device("cpu"))
    tokenize = clip.tokenize

    def counted(text):
        encoded[text] += 1
        return tokenize(text)

    monkeypatch.setattr(clip, "tokenize", counted)
    first = encoders.texts(["caption 0", ""])
    for number in range(1, 300):
        encoders.texts([f"caption {number}", "", f"caption {number}"])
    assert set(encoded.values()) == {1}
    assert all(map(torch.equal, encoders.texts(["caption 0", ""]), first))
    assert (encoded["caption 0"], encoded[""]) == (2, 1)


def test_captions_that_the_text_encoder_cuts_off_are_reported_once(caplog):
    encoders = core("comfy_host.differentiable").FrozenEncoders(None, tiny_clip(), None, torch.device("cpu"))
    whole, first, second = (f"a man in a {' '.join(['red'] * words)} coat" for words in (70, 71, 72))
    assert encoders.texts([whole, first, second, first])[0].shape[1] == 77
    (message,) = [record.getMessage() for record in caplog.records if "longer caption" in record.getMessage()]
    assert "takes 75 tokens" in message
    assert message.endswith(f'"{first}"')


def test_dropped_texts_and_faces_are_those_of_nothing(tiny_models, tmp_path):
    stage, _ = anchor_stage(tiny_models, tmp_path, drop_text=0.0, drop_face=0.0, drop_both=1.0)
    batch = first_batch(stage)
    empty = tiny_models[1].texts([""])[0]
    assert not batch.embeddings.any()
    torch.testing.assert_close(batch.context, empty.expand_as(batch.context))
    nothing = tiny_models[1].clip_features(torch.zeros(1, 3, 28, 28))
    torch.testing.assert_close(batch.clip_features, nothing.expand_as(batch.clip_features))


def test_the_variant_says_which_embedding_is_seen(tiny_models, tmp_path):
    for variant, name in (("DynamicID", "embedding_rgb"), ("IP-Adapter FaceID Plus", "embedding")):
        stage, _ = anchor_stage(tiny_models, tmp_path, variant=variant, drop_face=0, drop_both=0)
        expected = np.stack([getattr(sample, name) for sample in make_samples()[:2]])
        np.testing.assert_allclose(first_batch(stage).embeddings.numpy(), expected)


def test_the_variant_says_what_clip_sees(tiny_models):
    module, variants = core("training.inputs"), core("checkpoint").VARIANTS
    rng = np.random.default_rng(0)
    one = replace(make_samples()[0], picture=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    seen = {name: module.face_inputs([one], tiny_models[1], variant)[1] for name, variant in variants.items()}
    landmarks = (one.keypoints[[38, 88, 86, 52, 61]] * SIDE).astype(np.float32)
    aligned = core("face_analysis").align_for_clip(one.picture, landmarks)
    for name, photo in (("DynamicID", one.picture), ("IP-Adapter FaceID Plus", aligned)):
        expected = tiny_models[1].clip_features(tiny_models[1].clip_input([photo]))
        torch.testing.assert_close(seen[name], expected)
    assert not torch.allclose(*(seen[name] for name in ("DynamicID", "IP-Adapter FaceID Plus")), atol=1e-2)


def test_an_aligned_face_is_where_the_nodes_have_it(face_analysis):
    """The data has keypoints, the nodes the detector's landmarks."""
    photo = photos.astronaut()
    face = face_analysis.choose(photo, "largest", 0).chosen
    square = core("portrait").portrait_square(photo, face)
    portrait = square.crop(photo)
    keypoints = square.fractions(face.keypoints).astype(np.float32)
    one = replace(make_samples()[0], picture=portrait, keypoints=keypoints)
    trained = core("training.inputs")._crop(one, core("checkpoint").FACEID_PLUS).astype(float)
    shown = core("face_analysis").align_for_clip(photo, face.landmarks).astype(float)
    assert trained.shape == shown.shape == (224, 224, 3)
    assert np.abs(trained - shown).mean() < 0.5 * np.abs(np.roll(shown, 8, 0) - shown).mean()


@pytest.mark.parametrize("stage", ["AnchorStage", "ReconfigureStage"])
def test_another_clip_than_the_adapters_is_reported(tiny_models, tmp_path, adapter_file, stage):
    named = {"AnchorStage": "start_from", "ReconfigureStage": "adapter"}[stage]
    settings = config(stage.replace("Stage", "Settings"), tmp_path, **{named: str(adapter_file)})
    device = torch.device("cpu")
    encoders = core("comfy_host.differentiable").FrozenEncoders(
        tiny_vae(), tiny_clip(), tiny_clip_vision(hidden=80), device
    )
    with pytest.raises(ValueError, match=r"clip_vision has hidden size 80; .*photo\.bin was trained with one of 40"):
        getattr(core("training.stages"), stage)(tiny_models[0], encoders, ListSource(make_samples()), settings)


@pytest.mark.parametrize("variant", ["", "IP-Adapter FaceID Plus"])
def test_resuming_from_an_adapter_keeps_its_variant_unless_another_is_set(tiny_models, tmp_path, adapter_file, variant):
    stage, _ = anchor_stage(tiny_models, tmp_path, start_from=str(adapter_file), variant=variant)
    assert stage.network.adapter.variant.name == (variant or "DynamicID")
    assert stage.network.adapter.checkpoint().recognition == "w600k_r50"


def test_an_adapter_names_the_recognition_model_it_learned_with(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(ListSource, "recognition", "glintr100")
    train(*anchor_stage(tiny_models, tmp_path, steps=1))
    checkpoint = core("checkpoint").read_checkpoint(tmp_path / "adapter.safetensors", "adapter")
    assert checkpoint.recognition == "glintr100"


def test_data_of_another_recognition_model_than_the_adapters_is_refused(
    tiny_models, tmp_path, adapter_file, monkeypatch
):
    monkeypatch.setattr(ListSource, "recognition", "glintr100")
    with pytest.raises(ValueError, match=r"trained with the recognition model w600k_r50; the data set has .*glintr100"):
        anchor_stage(tiny_models, tmp_path, start_from=str(adapter_file))
    with pytest.raises(ValueError, match="trained with the recognition model w600k_r50"):
        reconfigure_stage(tiny_models, tmp_path, adapter_file)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("_lora.", "low-rank updates of one rank; this has none"),
        ("to_out_lora.", "low-rank updates of all projections; this has none of to_out"),
    ],
)
def test_starting_from_an_adapter_without_low_rank_updates_is_refused(
    tiny_models, tmp_path, adapter_file, lacking, message
):
    parts = torch.load(adapter_file, weights_only=True)
    parts["SAA_module"] = {key: tensor for key, tensor in parts["SAA_module"].items() if lacking not in key}
    torch.save(parts, tmp_path / "bare.bin")
    with pytest.raises(ValueError, match=message):
        anchor_stage(tiny_models, tmp_path, start_from=str(tmp_path / "bare.bin"))


def test_clip_sees_the_shoulders_of_another_photo_where_configured(tiny_models, tmp_path):
    with_other_clothes = core("training.anchoring").with_other_clothes
    samples = make_samples()
    shown = with_other_clothes(samples, 1.0, torch.Generator().manual_seed(0))
    swapped = 0
    for before, after in zip(samples, shown, strict=True):
        chin = below_chin(before)
        assert np.array_equal(after.picture[:chin], before.picture[:chin])
        assert any(np.array_equal(after.picture[chin], one.picture[below_chin(one)]) for one in samples)
        assert np.array_equal(after.embedding, before.embedding)
        swapped += not np.array_equal(after.picture, before.picture)
    assert swapped > len(samples) / 2
    assert with_other_clothes(samples, 0.0, torch.Generator().manual_seed(0)) == samples
    features = [
        anchor_stage(tiny_models, tmp_path, other_clothes=share)[0]
        .make_batch(samples, torch.Generator().manual_seed(1), torch.device("cpu"))
        .clip_features
        for share in (0.0, 1.0)
    ]
    assert not torch.equal(*features)


def test_nothing_above_the_chin_of_the_other_photo_comes_with_its_shoulders():
    low, high = with_chin(0.8), with_chin(0.4)
    for one, other in ((low, high), (high, low)):
        chin, size = below_chin(one), len(one.picture)
        rows = [min(below_chin(other) + row, size - 1) for row in range(size - chin)]
        expected = np.concatenate((one.picture[:chin], other.picture[rows]))
        shown = core("training.anchoring")._shoulders_of(other, one)
        assert np.array_equal(shown, expected)


def with_chin(chin):
    """A sample of noise, no two rows alike."""
    picture = np.random.default_rng(round(10 * chin)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return replace(make_samples()[0], picture=picture, keypoints=np.full((106, 2), chin, np.float32))


def below_chin(one):
    return round((float(one.keypoints[:, 1].max()) + 0.03) * len(one.picture))


def test_tokens_of_a_new_face_encoder_tell_one_embedding_from_another(tiny_models, tmp_path):
    stage, _ = anchor_stage(tiny_models, tmp_path)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    features = tiny_models[1].clip_features(torch.zeros(1, 3, 28, 28)).expand(8, -1, -1)
    with torch.no_grad():
        tokens = stage.network.adapter.tokens(embeddings, features)
    assert float(tokens.std(dim=0).mean() / tokens.std()) > 0.5


def test_tokens_that_are_the_same_for_everybody_show_in_the_metrics(tiny_models, tmp_path):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=1)
    train(stage, settings)
    assert losses(tmp_path, "token_spread")[0] > 0.01
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    assert float(core("training.networks").token_spread(tokens, torch.ones(5, dtype=torch.bool))) == 0


def test_dropped_faces_do_not_count_in_the_spread_of_tokens(tiny_models, tmp_path):
    """Tokens of dropped faces differ from those of people, who may all have the same."""
    stage, _ = anchor_stage(tiny_models, tmp_path, batch_size=8, drop_both=0.0, drop_face=0.4)
    batch = first_batch(stage)
    shown = batch.embeddings.any(dim=1)
    assert 2 <= int(shown.sum()) < 8
    for seen in (batch.embeddings, batch.clip_features):
        seen[shown] = seen[shown][:1].clone()
    assert float(stage.network(batch)["token_spread"]) == pytest.approx(0, abs=1e-6)


def test_a_single_face_has_no_spread_of_tokens(tiny_models, tmp_path):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=1, batch_size=1)
    train(stage, settings)
    assert np.isnan(losses(tmp_path, "token_spread")).all()
    assert np.isfinite(losses(tmp_path)).all()


def test_anchoring_learns(tiny_models, tmp_path):
    stage, settings = anchor_stage(tiny_models, tmp_path, steps=24, learning_rate=3e-3, save_every=0, batch_size=4)
    fixed = first_batch(stage)
    with torch.no_grad():
        before = float(stage.network(fixed)["loss"])
    train(stage, settings)
    with torch.no_grad():
        after = float(stage.network(fixed)["loss"])
    assert after < 0.9 * before
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert list(tmp_path.glob("**/events.out.tfevents*")), "TensorBoard reads these"


def test_an_adapter_to_go_on_from_is_read(tiny_models, tmp_path, adapter_file):
    stage, _ = anchor_stage(tiny_models, tmp_path, start_from=str(adapter_file))
    given = torch.load(adapter_file, weights_only=True)
    saved = stage.network.adapter.checkpoint().modules
    assert all(torch.equal(saved["saa"][key], tensor) for key, tensor in given["SAA_module"].items())
    assert all(torch.equal(saved["face_encoder"][key], tensor) for key, tensor in given["proj_module"].items())


def test_the_share_without_text_comes_beside_the_share_without_both(tiny_models, tmp_path):
    stage, _ = anchor_stage(tiny_models, tmp_path, batch_size=64, drop_both=0.4, drop_text=0.4, drop_face=0.0)
    batch = first_batch(stage)
    empty = tiny_models[1].texts([""])[0][0]
    no_text = torch.tensor([torch.allclose(one, empty, atol=1e-5) for one in batch.context])
    no_face = ~batch.embeddings.any(dim=1)
    assert bool(no_text[no_face].all())
    assert 10 < int((no_text & ~no_face).sum()) < 45
    assert torch.equal(batch.identities.any(dim=1), ~no_face)


def test_training_closes_the_gate_where_the_setting_says(tiny_models, tmp_path):
    found = []
    for threshold in (0.0, 0.9):
        stage, _ = anchor_stage(tiny_models, tmp_path, threshold=threshold)
        found.append(float(stage.network(first_batch(stage))["loss"].detach()))
    assert found[0] != found[1]
