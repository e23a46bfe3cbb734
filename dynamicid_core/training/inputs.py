"""Samples as inputs of the networks."""

import torch
from torch import Tensor

from ..checkpoint import Variant
from ..comfy_host.differentiable import FrozenEncoders
from ..face_analysis import align_for_clip
from ..images import Photo, to_image
from ..keypoints import ARCFACE_POINTS
from .data.sample import Sample


def pictures(samples: list[Sample]) -> Tensor:
    """The samples' pictures as the VAE takes them, [B, S, S, 3], 0 to 1."""
    return to_image([sample.picture for sample in samples])


def keypoints_of(samples: list[Sample]) -> Tensor:
    """Keypoints [B, 106, 2] in fractions of the pictures, float32."""
    return torch.stack([torch.from_numpy(sample.keypoints).float() for sample in samples])


def embeddings_of(samples: list[Sample]) -> Tensor:
    """The embeddings by which ArcFace recognises the people, [B, 512], float32."""
    return torch.stack([torch.from_numpy(sample.embedding).float() for sample in samples])


def face_inputs(samples: list[Sample], encoders: FrozenEncoders, variant: Variant) -> tuple[Tensor, Tensor]:
    """ArcFace embeddings [B, 512] and CLIP features [B, patches, size] of samples, as a variant takes them."""
    name = "embedding" if variant.embedding_channel_order == "bgr" else "embedding_rgb"
    embeddings = torch.stack([torch.from_numpy(getattr(sample, name)).float() for sample in samples])
    return embeddings, encoders.clip_features(encoders.clip_input([_crop(sample, variant) for sample in samples]))


def _crop(sample: Sample, variant: Variant) -> Photo:
    """The picture is a portrait; other crops are cut from it by the keypoints."""
    if variant.crop == "portrait":
        return sample.picture
    return align_for_clip(sample.picture, sample.keypoints[ARCFACE_POINTS] * sample.picture.shape[1::-1])
