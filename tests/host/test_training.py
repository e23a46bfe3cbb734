"""Both stages of training on a tiny model of the host's own classes: losses, gradients, resuming, what is written."""

import csv
from itertools import cycle, islice
from types import SimpleNamespace

import comfy.model_management
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.host.conftest import COMFYUI
from tests.host.graphs import tiny_clip, tiny_vae
from tests.host.rig import apply, core, eps, photo_adapter, run, sample, tiny_clip_vision, tiny_unet

SIDE = 64


def make_samples(people=3, photos=4):
    """People told apart by colour, with photos told apart by brightness."""
    chance = np.random.default_rng(0)
    make = core("training.data.sample").Sample
    samples = []
    for person in range(people):
        colour, embedding = chance.uniform(0.2, 0.8, 3), chance.normal(size=512).astype(np.float32)
        for number in range(photos):
            light = 0.6 + 0.2 * number
            picture = (colour * light * 255).clip(0, 255) * np.ones((SIDE, SIDE, 1))
            vector = embedding + 0.1 * chance.normal(size=512)
            vector = (vector / np.linalg.norm(vector)).astype(np.float32)
            samples.append(
                make(
                    key=f"{person}_{number}",
                    identity=str(person),
                    picture=picture.astype(np.uint8),
                    caption=f"a photo of a person, number {number}",
                    face_prompt=("in a happy expression, in front view", "in a sad expression, in side view")[
                        number % 2
                    ],
                    expression=("happy", "sad")[number % 2],
                    pose=np.array([0, 30 * (number % 2), 0], np.float32),
                    keypoints=chance.uniform(0.2, 0.8, (106, 2)).astype(np.float32),
                    embedding=vector,
                    embedding_rgb=vector[::-1].copy(),
                    labels={},
                )
            )
    return samples


class Listed:
    """Samples in the order of a list, again and again."""

    def __init__(self, samples):
        self._samples = samples

    def samples(self, process, processes, skip=0):
        return islice(cycle(self._samples), process + skip * processes, None, processes)

    def people(self, process, processes, photos, skip=0):
        groups = {}
        for one in self._samples:
            groups.setdefault(one.identity, []).append(one)
        people = cycle([group[:photos] for group in groups.values()])
        return islice(people, process + skip * processes, None, processes)


@pytest.fixture(scope="module")
def models():
    device = comfy.model_management.get_torch_device()
    module = core("comfy_host.differentiable")
    encoders = module.FrozenEncoders(tiny_vae(), tiny_clip(), tiny_clip_vision(), device)
    return module.DenoisingModel(tiny_unet(), device, torch.float32, gradient_checkpointing=False), encoders


def config(kind, output, **changes):
    given = {
        "data": "", "base_model": "", "clip_vision": "", "output": str(output), "steps": 4, "batch_size": 2,
        "learning_rate": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 2, "sample_every": 0,
    }  # fmt: skip
    return getattr(core("training.config"), kind)(**{**given, **changes})


def anchor_stage(models, output, **changes):
    settings = config("AnchorConfig", output, **{"rank": 4, **changes})
    return core("training.stages").AnchorStage(*models, Listed(make_samples()), settings), settings


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory):
    return photo_adapter(tmp_path_factory.mktemp("adapter") / "photo.bin")


def reconfigure_stage(models, output, adapter_file, **changes):
    small = {"size": 64, "features": 64, "targets": 2, "adapter": str(adapter_file), **changes}
    settings = config("ReconfigureConfig", output, **small)
    return core("training.stages").ReconfigureStage(*models, Listed(make_samples()), settings), settings


def train(stage, settings):
    core("training.loop").train(stage, settings, cpu=True)


def losses(output, name="loss"):
    with (output / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def some_batch(stage, seed=3):
    raw = next(stage.raw_batches(0, 1))
    return stage.make_batch(raw, torch.Generator().manual_seed(seed), torch.device("cpu"))


def randomise(network, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def slope(stage, batch, parameter, direction, step):
    """The change of the loss along a direction, by trying."""
    with torch.no_grad():
        values = []
        for side in (1, -1):
            parameter.add_(direction, alpha=side * step)
            values.append(float(stage.network(batch)["loss"]))
            parameter.add_(direction, alpha=-side * step)
    return (values[0] - values[1]) / (2 * step)


def assert_gradient_is_the_slope(stage, parameters):
    batch = some_batch(stage)
    stage.network.eval()
    stage.network.zero_grad()
    stage.network(batch)["loss"].backward()
    for name in parameters:
        parameter = stage.network.get_parameter(name)
        direction = parameter.grad / parameter.grad.norm()
        expected = float((parameter.grad * direction).sum())
        assert expected > 0, name
        # Large steps leave the tangent, small ones drown in rounding.
        tried = [slope(stage, batch, parameter, direction, step) for step in (1e-2, 3e-3, 1e-3)]
        assert min(abs(one / expected - 1) for one in tried) < 0.03, (name, expected, tried)


def test_the_noise_loss_is_that_of_the_model_with_the_nodes(models, tmp_path):
    """A checkpoint written in training computes in the nodes what it computed in the trainer."""
    stage, _ = anchor_stage(models, tmp_path, threshold=0.3, drop_text=0, drop_face=0, drop_both=0)
    randomise(stage.network)
    stage.network.eval()
    batch = some_batch(stage)
    batch.timesteps[:] = 501
    with torch.no_grad():
        trained = stage.network.predict(batch, stage.network.tokens(batch))
        tokens = stage.network.adapter.tokens(batch.embeddings, batch.clip_features)
    stage.save_weights(tmp_path)
    loaded = load(tmp_path)
    for row in range(len(trained)):
        face = core("face").Face(tokens[row : row + 1], tokens[row : row + 1], "token size 64")
        text = [[batch.context[row : row + 1], {}]]
        seen = models[0].noisy(batch.latents, batch.noise, batch.timesteps)[row : row + 1]
        by_nodes = eps(*apply(loaded, face, positive=text, negative=text), seen)[1]
        torch.testing.assert_close(by_nodes, trained[row], atol=1e-4, rtol=0)
    with torch.no_grad():
        loss = float(stage.network(batch)["loss"])
    assert loss == pytest.approx(float(((trained - batch.noise) ** 2).mean()), rel=1e-5)


def test_the_trainer_paints_the_picture_that_the_nodes_paint(models, tmp_path):
    stage, _ = anchor_stage(models, tmp_path)
    randomise(stage.network)
    stage.network.eval()
    denoiser, encoders = models
    module = core("training.stages")
    samples = make_samples()[:1]
    tokens, nobody = module._tokens(stage.network.adapter, encoders, samples)
    context = encoders.texts([samples[0].caption, ""])[0]
    latent = torch.zeros(1, 4, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.manual_seed(1))
    settings, attention = core("saa").SaaSettings(), core("comfy_host.differentiable").text_attention
    patches = stage.network.adapter.patches(torch.cat((tokens, nobody)), settings, attention)
    painted = denoiser.paint(noise, 3, 5.0, context, patches)
    stage.save_weights(tmp_path)
    face = core("face").Face(tokens, nobody, "token size 64")
    positive, negative = [[context[:1], {}]], [[context[1:], {}]]
    by_nodes = sample(*apply(load(tmp_path), face, positive=positive, negative=negative), latent, steps=3, seed=1)
    assert (by_nodes - sample(tiny_unet(), positive, negative, latent, steps=3, seed=1)).abs().max() > 0.1
    torch.testing.assert_close(painted, by_nodes, atol=2e-3, rtol=0)


def load(folder):
    import folder_paths

    target = f"{folder_paths.models_dir}/dynamicid/trained.safetensors"
    with open(folder / "adapter.safetensors", "rb") as source, open(target, "wb") as copy:
        copy.write(source.read())
    return run("DynamicIDLoader", adapter="trained.safetensors")[0]


def test_noise_is_added_as_the_schedule_says(models):
    denoiser = models[0]
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[[100, 900]].float().view(2, 1, 1, 1)
    expected = kept.sqrt() * latents * 0.18215 + (1 - kept).sqrt() * noise
    torch.testing.assert_close(denoiser.noisy(latents, noise, torch.tensor([100, 900])), expected, atol=1e-4, rtol=0)


def test_a_new_adapter_leaves_the_unet_as_it_was_where_the_gate_is_closed(models, tmp_path):
    """Low-rank updates begin at zero, identity keys and values as those of the text."""
    stage, _ = anchor_stage(models, tmp_path)
    adapter, unet = stage.network.adapter, models[0].network.state_dict()
    layer = next(layer for layer in adapter.layers if layer.is_cross)
    own = adapter.projections.layers[str(layer.index)]
    assert torch.equal(own["to_k_ip"].weight, unet[f"{layer.path}.to_k.weight"])
    assert torch.equal(own["to_v_ip"].weight, unet[f"{layer.path}.to_v.weight"])
    assert all(not p.any() for name, p in adapter.updates.named_parameters() if ".up." in name)


def test_anchoring_gradients_are_the_slopes_of_the_loss(models, tmp_path):
    stage, _ = anchor_stage(models, tmp_path)
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


def test_gradient_checkpointing_changes_no_gradient(models, tmp_path):
    device, module = torch.device("cpu"), core("comfy_host.differentiable")
    grads = []
    for checkpointing in (False, True):
        denoiser = module.DenoisingModel(tiny_unet(), device, torch.float32, checkpointing)
        stage, _ = anchor_stage((denoiser, models[1]), tmp_path)
        randomise(stage.network)
        stage.network(some_batch(stage))["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in stage.network.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_dropped_texts_and_faces_are_those_of_nothing(models, tmp_path):
    stage, _ = anchor_stage(models, tmp_path, drop_text=0.0, drop_face=0.0, drop_both=1.0)
    batch = some_batch(stage)
    empty = models[1].texts([""])[0]
    assert not batch.embeddings.any()
    torch.testing.assert_close(batch.context, empty.expand_as(batch.context))
    nothing = models[1].clip_features(torch.zeros(1, 3, 28, 28))
    torch.testing.assert_close(batch.clip_features, nothing.expand_as(batch.clip_features))


def test_the_variant_says_which_embedding_is_seen(models, tmp_path):
    for variant, name in (("DynamicID", "embedding_rgb"), ("IP-Adapter FaceID Plus", "embedding")):
        stage, _ = anchor_stage(models, tmp_path, variant=variant, drop_face=0, drop_both=0)
        expected = np.stack([getattr(sample, name) for sample in make_samples()[:2]])
        np.testing.assert_allclose(some_batch(stage).embeddings.numpy(), expected)


def test_clip_sees_the_shoulders_of_another_photo_where_asked(models, tmp_path):
    with_other_clothes = core("training.anchoring").with_other_clothes
    samples = make_samples()
    shown = with_other_clothes(samples, 1.0, torch.Generator().manual_seed(0))
    size = len(samples[0].picture)
    swapped = 0
    for before, after in zip(samples, shown, strict=True):
        chin = round((float(before.keypoints[:, 1].max()) + 0.03) * size)
        assert np.array_equal(after.picture[:chin], before.picture[:chin])
        assert any(np.array_equal(after.picture[chin:], one.picture[chin:]) for one in samples)
        assert np.array_equal(after.embedding, before.embedding)
        swapped += not np.array_equal(after.picture, before.picture)
    assert swapped > len(samples) / 2
    assert with_other_clothes(samples, 0.0, torch.Generator().manual_seed(0)) == samples
    features = [
        anchor_stage(models, tmp_path, other_clothes=share)[0]
        .make_batch(samples, torch.Generator().manual_seed(1), torch.device("cpu"))
        .clip_features
        for share in (0.0, 1.0)
    ]
    assert not torch.equal(*features)


def test_tokens_of_a_new_face_encoder_tell_one_embedding_from_another(models, tmp_path):
    stage, _ = anchor_stage(models, tmp_path)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    features = models[1].clip_features(torch.zeros(1, 3, 28, 28)).expand(8, -1, -1)
    with torch.no_grad():
        tokens = stage.network.adapter.tokens(embeddings, features)
    assert float(tokens.std(dim=0).mean() / tokens.std()) > 0.5


def test_tokens_that_are_the_same_for_everybody_show_in_the_metrics(models, tmp_path):
    stage, settings = anchor_stage(models, tmp_path, steps=1)
    train(stage, settings)
    assert losses(tmp_path, "token_spread")[0] > 0.01
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    assert float(core("training.networks").token_spread(tokens)) == 0


def test_a_part_with_a_lower_rate_learns_less(models, tmp_path):
    moved = {}
    for name, rates in (("as_all", {}), ("slower", {"adapter.face_encoder": 0.01})):
        stage, settings = anchor_stage(models, tmp_path / name, steps=2, rates=rates, ema_decay=0.0)
        randomise(stage.network)
        encoder, values = (stage.network.adapter.get_submodule(part) for part in ("face_encoder", "projections"))
        before = [[p.detach().clone() for p in part.parameters()] for part in (encoder, values)]
        train(stage, settings)
        moved[name] = [
            sum(float((now.detach() - then).abs().sum()) for now, then in zip(part.parameters(), was, strict=True))
            for part, was in zip((encoder, values), before, strict=True)
        ]
    assert moved["slower"][0] < 0.02 * moved["as_all"][0]
    assert moved["slower"][1] > 0.5 * moved["as_all"][1]


def test_a_rate_for_a_part_that_does_not_exist_is_refused(models, tmp_path):
    stage, settings = anchor_stage(models, tmp_path, rates={"adapter.face_encodr": 0.1})
    message = r"rates names adapter\.face_encodr, but nothing that trains begins so\. Parts are adapter"
    with pytest.raises(core("errors").InputError, match=message):
        train(stage, settings)


def test_anchoring_learns(models, tmp_path):
    stage, settings = anchor_stage(models, tmp_path, steps=24, learning_rate=3e-3, save_every=0, batch_size=4)
    fixed = some_batch(stage)
    with torch.no_grad():
        before = float(stage.network(fixed)["loss"])
    train(stage, settings)
    with torch.no_grad():
        after = float(stage.network(fixed)["loss"])
    assert after < 0.9 * before
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert list(tmp_path.glob("**/events.out.tfevents*")), "TensorBoard reads these"


def test_reconfiguration_losses_are_those_of_a_direct_computation(models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(models, tmp_path, adapter_file, diffusion_weight=0.7)
    stage.network.eval()
    batch, network = some_batch(stage), stage.network
    with torch.no_grad():
        found = network(batch)
        rows = []
        for person in range(2):
            source = network.keypoint_encoder(batch.source_rasters[person : person + 1])
            for row in range(2 * person, 2 * person + 2):
                target = network.keypoint_encoder(batch.target_rasters[row : row + 1])
                texts = batch.source_text[person : person + 1], batch.target_text[row : row + 1]
                rows.append(network.imr(batch.source_tokens[person : person + 1], source, target, *texts))
        edited = torch.cat(rows)
        feature = ((edited - batch.target_tokens) ** 2).mean()
        seen = batch.diffusion
        difference = network.predict(seen, edited) - network.predict(seen, batch.target_tokens)
        consistency = (difference**2).mean()
    assert float(found["feature"]) == pytest.approx(float(feature), rel=1e-4)
    assert float(found["consistency"]) == pytest.approx(float(consistency), rel=1e-3)
    assert float(found["loss"]) == pytest.approx(float(feature + 0.7 * consistency), rel=1e-4)


def test_the_unet_looks_at_a_share_of_the_batches_only(models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(models, tmp_path, adapter_file, diffusion_share=0.5)
    batches = [some_batch(stage, seed) for seed in range(40)]
    assert 8 < sum(batch.diffusion is None for batch in batches) < 32
    unseen = next(batch for batch in batches if batch.diffusion is None)
    found = stage.network(unseen)
    assert float(found["loss"].detach()) == float(found["feature"])
    # Every step tells the same losses, so that processes can average them.
    assert found.keys() == stage.network(next(one for one in batches if one.diffusion is not None)).keys()


def test_a_new_imr_leaves_tokens_as_they_are():
    imr_module = core("imr")
    imr = imr_module.Imr(imr_module.ImrSizes(64, 96, 128, 4, 256, 2, 2))
    core("training.networks").start_with_the_tokens(imr)
    tokens = torch.nn.functional.layer_norm(torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)), (64,))
    motion, text = torch.randn(3, 32), torch.randn(3, 64)
    with torch.no_grad():
        edited = imr(tokens, motion[:1], motion, text[:1], text)
    torch.testing.assert_close(edited, tokens.expand(3, -1, -1), atol=1e-3, rtol=1e-3)


def test_reconfiguration_gradients_are_the_slopes_of_the_loss(models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(models, tmp_path, adapter_file)
    randomise(stage.network.imr)  # a new one lets nothing through to its inner layers
    assert_gradient_is_the_slope(
        stage,
        ["imr.proj_out.weight", "imr.entangleNet.0.0.to_kv.weight", "keypoint_encoder.blocks.6.1.conv_block.0.weight"],
    )


def test_reconfiguration_leaves_the_adapter_alone(models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(models, tmp_path, adapter_file)
    names = {name.split(".")[0] for name, p in stage.network.named_parameters() if p.requires_grad}
    assert names == {"imr", "keypoint_encoder"}
    stage.network(some_batch(stage))["loss"].backward()
    assert all(p.grad is None for p in stage._adapter.parameters())


def test_reconfiguration_learns_and_its_files_edit_faces_in_the_nodes(models, tmp_path, adapter_file):
    stage, settings = reconfigure_stage(
        models, tmp_path, adapter_file, steps=20, learning_rate=2e-3, save_every=0, diffusion_weight=0.1
    )
    train(stage, settings)
    values = losses(tmp_path, "feature")
    assert np.mean(values[-4:]) < 0.8 * np.mean(values[:4])
    import folder_paths

    folder = folder_paths.models_dir + "/dynamicid/"
    for name in ("imr", "keypoint_encoder"):
        (tmp_path / f"{name}.safetensors").rename(f"{folder}trained_{name}.safetensors")
    photo_adapter(folder + "photo.bin")
    editor = run(
        "DynamicIDLoader",
        adapter="photo.bin",
        imr="trained_imr.safetensors",
        keypoint_encoder="trained_keypoint_encoder.safetensors",
    )[0]
    source, target = make_samples()[:2]
    batch = some_batch(stage)
    face = core("face").Face(
        batch.source_tokens[:1],
        torch.zeros(1, 4, 64),
        "token size 64",
        keypoints=torch.from_numpy(source.keypoints),
        face_prompt=source.face_prompt,
    )
    keypoints = core("keypoints").Keypoints(torch.from_numpy(target.keypoints))
    edited = run(
        "DynamicIDEditFace",
        face=face,
        dynamicid=editor,
        clip=tiny_clip(),
        target_prompt=target.face_prompt,
        keypoints=keypoints,
    )[0]
    stage.network.eval()
    with torch.no_grad():
        expected = stage.network.edit(batch)[:1]
    assert (edited.tokens - expected).abs().max() < 0.3, "the file holds the average of the weights, not the last"
    assert (edited.tokens - face.tokens).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["anchor", "reconfigure"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(models, tmp_path, adapter_file, kind):
    def stage(output, **changes):
        if kind == "anchor":
            return anchor_stage(models, output, **changes)
        return reconfigure_stage(models, output, adapter_file, **changes)

    train(*stage(tmp_path / "whole", steps=4, accumulation=2))
    train(*stage(tmp_path / "parts", steps=2, accumulation=2))
    train(*stage(tmp_path / "parts", steps=4, accumulation=2))
    name = "adapter" if kind == "anchor" else "imr"
    whole, parts = (load_file(tmp_path / run_ / f"{name}.safetensors") for run_ in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_pressing_ctrl_c_saves_a_state_first(models, tmp_path):
    stage, settings = anchor_stage(models, tmp_path, steps=10, save_every=0)
    make, made = stage.make_batch, []

    def interrupted(*arguments):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(*arguments)

    stage.make_batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(stage, settings)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000003"]
    train(*anchor_stage(models, tmp_path, steps=5, save_every=0))
    assert len(losses(tmp_path)) == 5


def test_only_the_newest_states_are_kept(models, tmp_path):
    train(*anchor_stage(models, tmp_path, steps=4, save_every=1, keep=2))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_is_told_and_the_state_before_stays(models, tmp_path, monkeypatch):
    train(*anchor_stage(models, tmp_path, steps=2))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(core("training.loop"), "save_file", full)
    with pytest.raises(ValueError, match=r"No space left .* goes on from step-00000002"):
        train(*anchor_stage(models, tmp_path, steps=4))
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000002"]


def test_another_run_in_the_folder_is_not_overwritten(models, tmp_path):
    train(*anchor_stage(models, tmp_path, steps=2))
    with pytest.raises(ValueError, match="holds another run: seed differ"):
        train(*anchor_stage(models, tmp_path, steps=4, seed=1))


def test_sheets_show_what_the_weights_can_do(models, tmp_path, adapter_file):
    train(*anchor_stage(models, tmp_path / "a", steps=2, sample_every=1, sample_steps=2))
    train(*reconfigure_stage(models, tmp_path / "b", adapter_file, steps=1, sample_every=1, sample_steps=2))
    from PIL import Image

    sizes = [Image.open(path).size for path in sorted(tmp_path.glob("*/sheets/*.jpg"))]
    assert sizes == [(2 * SIDE, 4 * SIDE), (2 * SIDE, 4 * SIDE), (4 * SIDE, 4 * SIDE)]


def test_an_adapter_to_go_on_from_is_read(models, tmp_path, adapter_file):
    stage, _ = anchor_stage(models, tmp_path, start_from=str(adapter_file))
    given = torch.load(adapter_file, weights_only=True)
    saved = stage.network.adapter.checkpoint().modules
    assert all(torch.equal(saved["saa"][key], tensor) for key, tensor in given["SAA_module"].items())
    assert all(torch.equal(saved["face_encoder"][key], tensor) for key, tensor in given["proj_module"].items())


def test_an_imr_without_its_keypoint_encoder_is_refused(models, tmp_path, adapter_file):
    with pytest.raises(ValueError, match="give both files"):
        reconfigure_stage(models, tmp_path, adapter_file, imr="imr.bin")


def test_a_base_model_that_does_not_predict_noise_is_refused():
    import comfy.model_base

    model = SimpleNamespace(model=SimpleNamespace(model_type=comfy.model_base.ModelType.FLOW))
    with pytest.raises(ValueError, match="predicts FLOW, not noise"):
        core("comfy_host.differentiable").DenoisingModel(model, torch.device("cpu"), torch.float32, False)


@pytest.fixture
def command(models, tmp_path, monkeypatch, adapter_file):
    """The command line, with tiny models in the place of files."""
    monkeypatch.setattr(core("comfy_host.differentiable"), "load_models", lambda *_: models)
    monkeypatch.setenv("COMFYUI_PATH", str(COMFYUI))
    shards, sample = core("training.data.shards"), core("training.data.sample")
    writer = shards.ShardWriter(tmp_path / "data", {})
    for person in ("0", "1", "2"):
        records = {one.key: sample.to_record(one) for one in make_samples() if one.identity == person}
        writer.add(person, records, {})
    writer.finish()

    def run_command(stage, **settings):
        given = {
            "data": str(tmp_path / "data"), "base_model": "b", "clip_vision": "c", "output": str(tmp_path / stage),
            "steps": 2, "batch_size": 2, "sample_every": 0, "log_every": 1, **settings,
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text("\n".join(f"{name}: {value}" for name, value in given.items()))
        return core("training.__main__").main([stage, "--config", str(tmp_path / "run.yaml"), "--cpu"])

    return run_command


def test_both_commands_train_from_shards_to_weights(command, tmp_path):
    assert command("anchor", rank=4) == 0
    adapter = tmp_path / "anchor" / "adapter.safetensors"
    assert command("reconfigure", adapter=adapter, size=64, features=64, targets=2) == 0
    read = core("checkpoint").read_checkpoint
    read(adapter, "adapter")
    for part in ("imr", "keypoint_encoder"):
        read(tmp_path / "reconfigure" / f"{part}.safetensors", part)


def test_a_mistake_is_one_sentence_and_no_trace(command, tmp_path, capsys):
    assert command("anchor", rnak=4) == 2
    assert capsys.readouterr().err.startswith('There is no setting "rnak"; did you mean rank?')
    assert command("anchor", data=tmp_path) == 2
    assert "has no index.json" in capsys.readouterr().err


def test_a_folder_that_is_no_comfyui_is_told(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert command("anchor") == 2
    assert "is no ComfyUI" in capsys.readouterr().err


def test_a_file_that_is_no_base_model_is_told(tmp_path):
    module = core("comfy_host.differentiable")
    with pytest.raises(ValueError, match="There is no base model"):
        module.load_base_model(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"cut\.safetensors could not be read as a checkpoint"):
        module.load_base_model(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="There is no CLIP vision model"):
        module.load_clip_vision(tmp_path / "none.safetensors")


@pytest.fixture
def _new_process():
    """Accelerate takes one precision a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_new_process")
@pytest.mark.parametrize("kind", ["anchor", "reconfigure"])
def test_half_precision_trains_and_draws_its_sheets(models, tmp_path, adapter_file, kind):
    denoiser = core("comfy_host.differentiable").DenoisingModel(
        tiny_unet(), torch.device("cpu"), torch.bfloat16, gradient_checkpointing=True
    )
    pair, changes = (denoiser, models[1]), {"precision": "bf16", "sample_every": 2, "sample_steps": 1, "steps": 2}
    if kind == "anchor":
        train(*anchor_stage(pair, tmp_path, **changes))
    else:
        train(*reconfigure_stage(pair, tmp_path, adapter_file, **changes))
    assert np.isfinite(losses(tmp_path)).all()
    assert len(list(tmp_path.glob("sheets/*.jpg"))) == 1
    name = {"anchor": "adapter", "reconfigure": "imr"}[kind]
    assert {tensor.dtype for tensor in load_file(tmp_path / f"{name}.safetensors").values()} == {torch.float32}


def test_an_sdxl_base_model_is_refused():
    from tests.host.test_sdxl import tiny_sdxl

    with pytest.raises(ValueError, match=r"also takes pooled text and sizes \(SDXL\)"):
        core("comfy_host.differentiable").DenoisingModel(tiny_sdxl(), torch.device("cpu"), torch.float32, False)
