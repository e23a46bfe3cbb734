"""The face encoder against the released code's inputs and outputs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dynamicid_core.face_encoder import FaceEncoder, FaceEncoderSizes

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "proj_small.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def encoder(golden):
    weights = {key.removeprefix("w."): tensor for key, tensor in golden[0].items() if key.startswith("w.")}
    network = FaceEncoder(FaceEncoderSizes.from_state_dict(weights))
    network.load_state_dict(weights, strict=True)
    return network.eval()


def run(encoder, golden, **options):
    with torch.no_grad():
        return encoder(golden["in.id_embeds"], golden["in.clip_embeds"], **options)


def test_sizes_are_read_from_the_weights(encoder, golden):
    config = golden[1]
    assert encoder.sizes == FaceEncoderSizes(
        config["cross_attention_dim"], config["id_embeddings_dim"], config["clip_embeddings_dim"], config["num_tokens"]
    )


def test_tokens_match_the_released_encoder(encoder, golden):
    torch.testing.assert_close(run(encoder, golden[0]), golden[0]["out"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 1])
def test_tokens_with_shortcut_match_faceid_plus_v2(encoder, golden, scale):
    expected = golden[0][f"out_shortcut_scale{scale}"]
    torch.testing.assert_close(run(encoder, golden[0], shortcut=True, scale=scale), expected, atol=TOLERANCE, rtol=0)


def test_tokens_of_no_face_match_the_released_encoder(encoder, golden):
    tensors = golden[0]
    with torch.no_grad():
        out = encoder(torch.zeros_like(tensors["in.id_embeds"][:1]), tensors["in.clip_uncond"])
    torch.testing.assert_close(out, tensors["out_uncond"], atol=TOLERANCE, rtol=0)
