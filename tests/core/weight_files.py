"""Weight files to read: golden ones, and small ones in the layout of published files."""

from pathlib import Path

import torch

from dynamicid_core.face_encoder import FaceEncoder, FaceEncoderSizes
from dynamicid_core.imr import KeypointEncoder, KeypointEncoderSizes

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = GOLDEN / "SAA_tiny.bin"


def adapter_file(path, token_size, layers, naming=("image_proj", "ip_adapter")):
    """A FaceID Plus file in its real layout and sizes of the family, with small layers."""
    sizes = FaceEncoderSizes(token_size, embedding_size=8, clip_size=16, depth=1)
    encoder = FaceEncoder(sizes).half().state_dict()
    saa = {}
    for i in range(layers):
        context = token_size if i % 2 else 8
        for name, size in (("to_q", 8), ("to_k", context), ("to_v", context), ("to_out", 8)):
            saa[f"{i}.{name}_lora.down.weight"], saa[f"{i}.{name}_lora.up.weight"] = (
                torch.rand(2, size),
                torch.rand(8, 2),
            )
        if i % 2:
            saa[f"{i}.to_k_ip.weight"], saa[f"{i}.to_v_ip.weight"] = (
                torch.rand(8, token_size),
                torch.rand(8, token_size),
            )
    torch.save({naming[0]: encoder, naming[1]: saa}, path)
    return path


def keypoint_encoder(features=64):
    return KeypointEncoder(KeypointEncoderSizes(features)).state_dict()
