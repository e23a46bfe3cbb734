"""Reconfiguration on a tiny model of the host's own classes: losses, gradients, what it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.host.graphs import tiny_clip
from tests.host.helpers import core, photo_adapter, run
from tests.host.training_helpers import (
    assert_gradient_is_the_slope,
    first_batch,
    losses,
    make_samples,
    randomise,
    reconfigure_stage,
    train,
)


def test_networks_that_were_not_trained_together_are_reported(tiny_models, tmp_path, adapter_file):
    for features in (64, 32):
        train(*reconfigure_stage(tiny_models, tmp_path / str(features), adapter_file, steps=1, features=features))
    files = {"imr": tmp_path / "64" / "imr.safetensors"}
    files["keypoint_encoder"] = tmp_path / "32" / "keypoint_encoder.safetensors"
    error = r"IMR takes motions of \d+; .* give \d+ together \(32 and \d+\)\. Give a keypoint encoder that was trained"
    with pytest.raises(ValueError, match=error):
        reconfigure_stage(tiny_models, tmp_path, adapter_file, **{name: str(file) for name, file in files.items()})


def test_the_consistency_is_nan_until_the_unet_has_seen_a_batch(tiny_models, tmp_path, adapter_file):
    train(*reconfigure_stage(tiny_models, tmp_path, adapter_file, steps=3, diffusion_share=0.0))
    assert np.isnan(losses(tmp_path, "consistency")).all()


def test_reconfiguration_losses_are_those_of_a_direct_computation(tiny_models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file, diffusion_weight=0.7)
    stage.network.eval()
    batch, network = first_batch(stage), stage.network
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


def test_the_unet_looks_at_a_share_of_the_batches_only(tiny_models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file, diffusion_share=0.5)
    batches = [first_batch(stage, seed) for seed in range(40)]
    assert 8 < sum(batch.diffusion is None for batch in batches) < 32
    unseen = next(batch for batch in batches if batch.diffusion is None)
    found = stage.network(unseen)
    assert float(found["loss"].detach()) == float(found["feature"])
    # Every step reports the same losses, so that processes can average them.
    assert found.keys() == stage.network(next(one for one in batches if one.diffusion is not None)).keys()


def test_the_expected_loss_does_not_depend_on_the_share_that_the_unet_sees(tiny_models, tmp_path, adapter_file):
    expected = []
    for share in (1.0, 0.25):
        stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file, diffusion_weight=0.7)
        seen = first_batch(stage)
        stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file, diffusion_weight=0.7, diffusion_share=share)
        randomise(stage.network.imr)
        stage.network.eval()
        with torch.no_grad():
            loss, unseen = (float(stage.network(one)["loss"]) for one in (seen, replace(seen, diffusion=None)))
        assert loss > unseen
        expected.append(share * loss + (1 - share) * unseen)
    assert expected[1] == pytest.approx(expected[0], rel=1e-5)


def test_the_gate_closes_where_the_setting_says(tiny_models, tmp_path, adapter_file):
    found = []
    for threshold in (0.0, 0.9):
        stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file, threshold=threshold)
        batch = first_batch(stage)
        with torch.no_grad():
            found.append(stage.network.predict(batch.diffusion, batch.target_tokens))
    assert not torch.equal(*found)


def test_a_new_imr_leaves_tokens_as_they_are():
    imr_module = core("imr")
    imr = imr_module.Imr(imr_module.ImrSizes(64, 96, 128, 4, 256, 2, 2))
    core("training.networks").init_as_identity(imr)
    tokens = torch.nn.functional.layer_norm(torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)), (64,))
    motion, text = torch.randn(3, 32), torch.randn(3, 64)
    with torch.no_grad():
        edited = imr(tokens, motion[:1], motion, text[:1], text)
    torch.testing.assert_close(edited, tokens.expand(3, -1, -1), atol=1e-3, rtol=1e-3)


def test_reconfiguration_gradients_are_the_slopes_of_the_loss(tiny_models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file)
    randomise(stage.network.imr)  # a new one lets nothing through to its inner layers
    assert_gradient_is_the_slope(
        stage,
        ["imr.proj_out.weight", "imr.entangleNet.0.0.to_kv.weight", "keypoint_encoder.blocks.6.1.conv_block.0.weight"],
    )


def test_reconfiguration_leaves_the_adapter_alone(tiny_models, tmp_path, adapter_file):
    stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file)
    names = {name.split(".")[0] for name, p in stage.network.named_parameters() if p.requires_grad}
    assert names == {"imr", "keypoint_encoder"}
    stage.network(first_batch(stage))["loss"].backward()
    assert all(p.grad is None for p in stage._adapter.parameters())


def test_reconfiguration_learns_and_its_files_edit_faces_in_the_nodes(tiny_models, tmp_path, adapter_file):
    stage, settings = reconfigure_stage(
        tiny_models, tmp_path, adapter_file, steps=20, learning_rate=2e-3, save_every=0, diffusion_weight=0.1
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
    batch = first_batch(stage)
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


def test_a_sheet_that_fails_leaves_the_networks_training(tiny_models, tmp_path, adapter_file, monkeypatch):
    stage, _ = reconfigure_stage(tiny_models, tmp_path, adapter_file)

    def without_memory(batch):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(stage.network, "edit", without_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        stage.draw_sheet(tmp_path / "sheet.jpg", 1)
    assert stage.network.keypoint_encoder.training


def test_an_imr_without_its_keypoint_encoder_is_refused(tiny_models, tmp_path, adapter_file):
    with pytest.raises(ValueError, match="give both files"):
        reconfigure_stage(tiny_models, tmp_path, adapter_file, imr="imr.bin")
