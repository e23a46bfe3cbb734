"""Encodes photos as a face, with InsightFace, CLIP and the face encoder on the devices ComfyUI selects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..checkpoint import base_model_name
from ..comparison import SAME_PERSON
from ..drawing import draw_faces, resize_to_preview
from ..errors import InputError
from ..face import Face, average_faces
from ..face_analysis import ALIGNED_SIZE, DetectedFace, FaceAnalysis, FaceSelection, align, align_for_clip
from ..face_packs import check_recognition
from ..face_prompt import face_prompt
from ..images import Photo, Square, central_square, clip_input
from ..portrait import MeasuredKeypoints, measure_keypoints, portrait_square
from .clip_models import penultimate
from .loading import DynamicID
from .progress import one_by_one

_log = logging.getLogger(__name__)
CROPS = ("auto", "portrait", "aligned", "whole picture")


def encode_photos(
    dynamicid: DynamicID,
    analysis: FaceAnalysis,
    clip_vision: Any,
    photos: Sequence[Photo],
    order: str = "largest",
    index: int = 0,
    crop: str = "auto",
) -> tuple[Face, list[Photo]]:
    """One face from photos of one person, and three previews per photo: detected faces, CLIP's and ArcFace's crop.

    order, index: of the face in each photo, see ``FaceAnalysis.choose``. crop: one of CROPS; auto is the one the
    adapter was trained with. Raises InputError for a photo without such a face and for a CLIP model that does not fit.
    """
    if crop not in CROPS:
        raise InputError(f'"{crop}" is not a crop. Choose one of: {", ".join(CROPS)}.')
    if clip_vision is None:
        raise InputError("The clip_vision input is empty: that file has no vision model. Connect Load CLIP Vision.")
    check_recognition(dynamicid.recognition, analysis.recognition, "The adapter was trained")
    variant = dynamicid.variant
    crop = variant.crop if crop == "auto" else crop
    subjects: list[_Subject] = []
    previews: list[Photo] = []
    for number, photo in enumerate(one_by_one(photos), start=1):
        found = analysis.choose(photo, order, index, number, len(photos))
        subject = _subject(found.photo, found.chosen, crop, analysis, variant.embedding_channel_order)
        subjects.append(subject)
        previews += _previews(found, subject.crop)
    _warn_about_strangers(torch.stack([subject.embedding for subject in subjects]))
    sizes = dynamicid.face_encoder.model.sizes
    features, no_features = clip_features(clip_vision, [subject.crop for subject in subjects], sizes.clip_size)
    seen = torch.stack([subject.seen_embedding for subject in subjects])
    tokens, uncond_tokens = encode_tokens(dynamicid, seen, features, no_features)
    base_model = base_model_name(sizes.token_size)
    faces = [
        subject.face(own, uncond_tokens, base_model) for own, subject in zip(tokens.split(1), subjects, strict=True)
    ]
    return replace(average_faces(faces), recognition=analysis.recognition), previews


def _warn_about_strangers(embeddings: Tensor) -> None:
    """Warns of photos whose person is in no other photo. embeddings: [B, 512]."""
    alike = (embeddings @ embeddings.T).fill_diagonal_(-1.0)
    strangers = [str(number) for number, own in enumerate(alike, start=1) if float(own.max()) < SAME_PERSON]
    if strangers and len(embeddings) > 1:
        _log.warning(
            "Photos of one person are expected, but number %s of %d resembles none of the others: see in the preview "
            "which face was used. The result is a mixture of people",
            " and ".join(strangers),
            len(embeddings),
        )


def clip_features(clip_vision: Any, photos: Sequence[Photo], needed_size: int) -> tuple[Tensor, Tensor]:
    """CLIP's penultimate layer for the photos, [B, patches, size], and for all-zero pixel values, [1, patches, size].

    The released model was trained with zero pixel values (after normalisation) for "no photo"; no picture gives them.
    Raises InputError if the vision model's hidden size is not the one the face encoder was trained with.
    """
    pixels = clip_input(photos, clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    features = penultimate(clip_vision, torch.cat((pixels, torch.zeros_like(pixels[:1]))))
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
    if not (torch.isfinite(embeddings).all() and torch.isfinite(features).all() and torch.isfinite(no_features).all()):
        raise InputError(
            "The face recognition or CLIP vision model gives values that are not numbers for this photo. Download both "
            "models again."
        )
    comfy.model_management.load_models_gpu([patcher])
    device = patcher.load_device
    embeddings = torch.cat((embeddings.float(), torch.zeros(1, embedding_size)))
    both = torch.cat((features, no_features.to(features.device)))
    with torch.no_grad():
        tokens = patcher.model(embeddings.to(device), both.to(device), shortcut=dynamicid.variant.shortcut)
    tokens = tokens.float().cpu()
    if not torch.isfinite(tokens).all():
        raise InputError("The adapter makes tokens that are not numbers: its file is damaged. Download it again.")
    return tokens[:-1], tokens[-1:]


@dataclass(frozen=True, eq=False)
class _Subject:
    """The person in one photo. crop: for CLIP. seen_embedding: ArcFace in the adapter's channel order."""

    crop: Photo
    seen_embedding: Tensor
    embedding: Tensor
    keypoints: MeasuredKeypoints | None

    def face(self, tokens: Tensor, uncond_tokens: Tensor, base_model: str) -> Face:
        if self.keypoints is None:
            return Face(tokens, uncond_tokens, base_model, self.embedding)
        return Face(
            tokens,
            uncond_tokens,
            base_model,
            self.embedding,
            keypoints=self.keypoints.points,
            pose=self.keypoints.pose,
            face_prompt=face_prompt(self.keypoints.expression, self.keypoints.pose),
            portrait=self.keypoints.portrait,
        )


def _subject(photo: Photo, face: DetectedFace, crop: str, analysis: FaceAnalysis, channel_order: str) -> _Subject:
    square = central_square(photo) if crop == "whole picture" else portrait_square(photo, face)
    if crop == "whole picture" and not _is_inside(face, square):
        _log.warning(
            "With the crop whole picture, CLIP sees only the central square of the photo, and part of the face is "
            "outside it: choose auto, or crop the photo"
        )
    embedding = analysis.embed(photo, face)
    seen = embedding if channel_order == "bgr" else analysis.embed(photo, face, channel_order)
    return _Subject(
        crop=_crop(photo, face, square, crop),
        seen_embedding=torch.from_numpy(seen),
        embedding=torch.from_numpy(embedding),
        keypoints=None if face.keypoints is None else measure_keypoints(photo, face, square),
    )


def _is_inside(face: DetectedFace, square: Square) -> bool:
    corners = square.fractions(face.box.reshape(2, 2))
    return bool((corners >= 0).all() and (corners <= 1).all())


def _previews(found: FaceSelection, crop: Photo) -> list[Photo]:
    marked = draw_faces(found.photo, found.faces, found.chosen)
    return [
        marked,
        resize_to_preview(central_square(crop).crop(crop)),
        resize_to_preview(align(found.photo, found.chosen.landmarks, ALIGNED_SIZE)),
    ]


def _crop(photo: Photo, face: DetectedFace, square: Square, crop: str) -> Photo:
    if crop == "aligned":
        return align_for_clip(photo, face.landmarks)
    # CLIP's preprocessing crops the whole picture itself, after resizing it.
    return photo if crop == "whole picture" else square.crop(photo)
