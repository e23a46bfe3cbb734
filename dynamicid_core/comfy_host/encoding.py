"""From photos to a face: InsightFace, CLIP and the face encoder, on the devices ComfyUI has chosen."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.clip_vision import clip_preprocess
from torch import Tensor

from ..checkpoint import base_model_name
from ..drawing import draw_faces, fit_square
from ..errors import InputError
from ..face import Face, average_faces
from ..face_analysis import DetectedFace, FaceAnalysis, align
from ..images import Photo, Square, central_square, clip_pixels, square_around
from .loading import DynamicID

CROPS = ("auto", "portrait", "aligned", "whole picture")
PORTRAIT_MARGIN = 2.0
"""Side of the portrait in lengths of the face box: hair and some shoulder too, as in the released examples."""
_ALIGNED_SIZE = 224


def encode_photos(
    dynamicid: DynamicID,
    analysis: FaceAnalysis,
    clip_vision: Any,
    photos: Sequence[Photo],
    order: str = "largest",
    index: int = 0,
    crop: str = "auto",
) -> tuple[Face, list[Photo]]:
    """One face from photos of one person, and two preview pictures a photo: what was found, and what CLIP sees of it.

    order, index: which face of each photo, see ``FaceAnalysis.choose``. crop: one of CROPS; auto is what the adapter
    was trained with. Raises InputError for a photo without such a face and for a CLIP model that does not fit.
    """
    if crop not in CROPS:
        raise InputError(f'"{crop}" is no crop. Choose one of: {", ".join(CROPS)}.')
    variant = dynamicid.checkpoint.variant
    crop = variant.crop if crop == "auto" else crop
    progress = comfy.utils.ProgressBar(len(photos) + 1)
    chosen, cuts, previews = [], [], []
    for number, photo in enumerate(photos, start=1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found = analysis.choose(photo, order, index, number, len(photos))
        chosen.append(found.chosen)
        cuts.append(_cut(photo, found.chosen, crop))
        previews += [draw_faces(photo, found.faces, found.chosen), fit_square(_square_preview(cuts[-1]))]
        progress.update(1)
    seen = [
        analysis.embed(photo, face, variant.embedding_channel_order) for photo, face in zip(photos, chosen, strict=True)
    ]
    features, no_features = clip_features(clip_vision, cuts, dynamicid.face_encoder.model.sizes.clip_size)
    tokens, uncond_tokens = encode_tokens(dynamicid, torch.from_numpy(np.stack(seen)), features, no_features)
    progress.update(1)
    faces = [
        _face(photo, face, analysis.embed(photo, face), crop, tokens[i : i + 1], uncond_tokens)
        for i, (photo, face) in enumerate(zip(photos, chosen, strict=True))
    ]
    return average_faces(faces), previews


def clip_features(clip_vision: Any, photos: Sequence[Photo], needed_size: int) -> tuple[Tensor, Tensor]:
    """CLIP's penultimate layer for the photos, [B, patches, size], and for all-zero pixel values, [1, patches, size].

    Zero pixel values, after normalisation, are what the released model trained "no photo" on; no picture gives them.
    Raises InputError when the vision model's hidden size is not the one the face encoder was trained with.
    """
    pixels = torch.stack([clip_pixels(photo, clip_vision.image_size) for photo in photos]).to(clip_vision.load_device)
    mean, std = getattr(clip_vision, "image_mean", None), getattr(clip_vision, "image_std", None)
    normalised = {"mean": mean, "std": std} if mean is not None else {}
    pixels = clip_preprocess(pixels, size=clip_vision.image_size, **normalised).float()
    pixels = torch.cat((pixels, torch.zeros_like(pixels[:1])))
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    features = clip_vision.model(pixel_values=pixels, intermediate_output=-2)[1].float()
    if features.shape[-1] != needed_size:
        raise InputError(
            f"This CLIP vision model has hidden size {features.shape[-1]}; the face encoder needs {needed_size}"
            f"{' (CLIP ViT-H/14, laion2B)' if needed_size == 1280 else ''}. Load that one with Load CLIP Vision."
        )
    return features[:-1], features[-1:]


def encode_tokens(
    dynamicid: DynamicID, embeddings: Tensor, features: Tensor, no_features: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens [B, T, D] of embeddings [B, 512] and their CLIP features, and tokens [1, T, D] of no face; float32."""
    patcher = dynamicid.face_encoder
    embedding_size = patcher.model.sizes.embedding_size
    if embeddings.shape[-1] != embedding_size:
        raise InputError(
            f"The face recognition model gives embeddings of size {embeddings.shape[-1]}; the face encoder needs "
            f"{embedding_size}. Use the InsightFace pack buffalo_l, with which the released model was trained."
        )
    comfy.model_management.load_models_gpu([patcher])
    device = patcher.load_device
    embeddings = torch.cat((embeddings.float(), torch.zeros(1, embedding_size)))
    both = torch.cat((features, no_features.to(features.device)))
    with torch.no_grad():
        tokens = patcher.model(embeddings.to(device), both.to(device), shortcut=dynamicid.checkpoint.variant.shortcut)
    tokens = tokens.float().cpu()
    return tokens[:-1], tokens[-1:]


def _cut(photo: Photo, face: DetectedFace, crop: str) -> Photo:
    if crop == "aligned":
        return align(photo, face, _ALIGNED_SIZE)
    return photo if crop == "whole picture" else _square(photo, face, crop).cut(photo)


def _square(photo: Photo, face: DetectedFace, crop: str) -> Square:
    """The square in whose fractions the face's keypoints are given."""
    return central_square(photo) if crop == "whole picture" else square_around(photo, face.box, PORTRAIT_MARGIN)


def _square_preview(cut: Photo) -> Photo:
    return central_square(cut).cut(cut)


def _face(
    photo: Photo, found: DetectedFace, embedding: np.ndarray, crop: str, tokens: Tensor, uncond_tokens: Tensor
) -> Face:
    keypoints = None if found.keypoints is None else _square(photo, found, crop).fractions(found.keypoints)
    return Face(
        tokens=tokens,
        uncond_tokens=uncond_tokens,
        base_model=base_model_name(tokens.shape[-1]),
        embedding=torch.from_numpy(embedding),
        keypoints=None if keypoints is None else torch.from_numpy(keypoints),
        pose=None if found.pose is None else torch.from_numpy(found.pose),
    )
