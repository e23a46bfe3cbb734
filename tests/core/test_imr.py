"""The IMR and the keypoint encoder against the released code (with the correction that lets its IMR run)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dynamicid_core.imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes
from tests import formula

GOLDEN = Path(__file__).parents[1] / "golden"


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


@pytest.fixture(scope="module")
def golden():
    return read("imr_small")


@pytest.fixture(scope="module")
def imr(golden):
    tensors, config = golden
    weights = {key.removeprefix("w."): tensor for key, tensor in tensors.items() if key.startswith("w.")}
    sizes = ImrSizes.from_state_dict(weights)
    assert sizes.heads == config["heads"]
    network = Imr(sizes)
    network.load_state_dict(weights, strict=True)
    return network.eval()


@pytest.mark.parametrize("targets", [1, 3])
def test_edited_tokens_match_the_released_imr(imr, golden, targets):
    tensors = golden[0]
    with torch.no_grad():
        out = imr(
            tensors["in.tokens"],
            tensors["in.src_landmark"],
            tensors[f"in.tgt_landmark_{targets}"],
            tensors["in.src_txt"],
            tensors[f"in.tgt_txt_{targets}"],
        )
    torch.testing.assert_close(out, tensors[f"out_{targets}"], atol=2e-5, rtol=0)


def test_depths_and_sizes_are_read_from_the_weights(imr, golden):
    config = golden[1]
    assert (imr.sizes.disentangle_depth, imr.sizes.entangle_depth) == (
        config["erase_layer_num"],
        config["drive_layer_num"],
    )
    assert (imr.sizes.size, imr.sizes.token_size) == (config["dim"], config["embedding_dim"])


def test_keypoint_features_match_the_released_encoder():
    tensors, config = read("kpe_true")
    encoder = KeypointEncoder(KeypointEncoderSizes(config["embedding_dim"]))
    formula.fill(encoder, salt=config["weight_salt"], gains={"conv_block": 1.2})
    with torch.no_grad():
        out = encoder.eval()(tensors["in.x"])
    torch.testing.assert_close(out, tensors["out_reshaped"], atol=1e-4, rtol=0)


def test_the_released_size_has_sixteen_attention_heads():
    """No tensor reveals it; the golden ones are small."""
    assert ImrSizes(768, 1536, 1024, 4, 4096, 4, 4).heads == 16
