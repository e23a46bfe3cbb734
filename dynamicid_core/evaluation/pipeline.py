"""Paints and analyses the pictures of an evaluation, with the functions that the nodes call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..comfy_host.editing import edit_face
from ..comfy_host.encoding import encode_photos
from ..comfy_host.loading import DynamicID
from ..comfy_host.painting import BaseModel, Sampling, paint
from ..face import Face, Placement
from ..face_analysis import DetectedFace, FaceAnalysis
from ..images import Photo
from ..layouts import equal_columns
from ..portrait import measure_keypoints, portrait_square
from ..saa import SaaSettings
from .cases import Motion
from .clip_score import ClipScore
from .metrics import SeenFace

NEGATIVE = "lowres, blurry, deformed, bad anatomy"
"""The negative prompt of the shipped workflows; the paper does not state its own."""


@torch.inference_mode()
def with_motion(dynamicid: DynamicID, clip: Any, face: Face, motion: Motion) -> Face:
    """The face edited to the motion: by its face prompt, and by the face's own keypoints moved to it."""
    return edit_face(dynamicid, clip, face, motion.prompt, motion.keypoints(face.motion()))


@dataclass(frozen=True, eq=False)
class HostPipeline:
    """The models of an evaluation. clip_vision: for the face encoder. clip_score: for CLIP-T, if there is one.
    threshold: of the gate.
    """

    base: BaseModel
    dynamicid: DynamicID
    clip_vision: Any
    analysis: FaceAnalysis
    sampling: Sampling
    clip_score: ClipScore | None = None
    threshold: float = SaaSettings.threshold

    @torch.inference_mode()
    def encode(self, photo: Photo) -> Face:
        """The largest face of a photo. Raises InputError when there is none."""
        return encode_photos(self.dynamicid, self.analysis, self.clip_vision, [photo])[0]

    def edit(self, face: Face, motion: Motion) -> Face:
        """The face with another expression and pose."""
        return with_motion(self.dynamicid, self.base.clip, face, motion)

    def paint(self, faces: Sequence[Face], gate: bool, prompt: str, seed: int) -> Photo:
        """A picture: one person anywhere, several in equal columns, none by the base model alone."""
        regions = equal_columns(len(faces)) if len(faces) > 1 else [None] * len(faces)
        placements = [Placement(face, region) for face, region in zip(faces, regions, strict=True)]
        settings = SaaSettings(threshold=self.threshold, gate=gate)
        return paint(self.base, self.dynamicid, placements, settings, prompt, NEGATIVE, self.sampling, seed)[0]

    def find_faces(self, photo: Photo) -> list[SeenFace]:
        """All faces of a picture, by the InsightFace pack and the expression classifier that the nodes use."""
        return [self._seen(photo, face) for face in self.analysis.detect(photo)]

    def clip_t(self, photo: Photo, prompt: str) -> float | None:
        """CLIP-T; None without a CLIP for it."""
        return None if self.clip_score is None else self.clip_score(photo, prompt)

    def _seen(self, photo: Photo, face: DetectedFace) -> SeenFace:
        found = measure_keypoints(photo, face, portrait_square(photo, face))
        return SeenFace(face, self.analysis.embed(photo, face), found.expression, found.pose)
