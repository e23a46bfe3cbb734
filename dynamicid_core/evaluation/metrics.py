"""The measures of the paper's tables, on embeddings, classes and pictures. EVALUATION.md says what is assumed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..comparison import compare
from ..face_analysis import DetectedFace
from ..face_prompt import TURN_THRESHOLD
from ..images import Photo

FRONT, SIDE, UP, DOWN = "front", "side", "up", "down"
POSES = (FRONT, SIDE, UP, DOWN)
MARGIN = 0.5
"""Margin of face boxes for ``disruption``, in their longer sides: hair, ears and neck belong to the face."""


@dataclass(frozen=True, eq=False)
class SeenFace:
    """A face of a picture. embedding: [512], length 1. expression: one of EXPRESSIONS. pose: [3] in degrees."""

    face: DetectedFace
    embedding: NDArray[np.float32]
    expression: str
    pose: Tensor


@dataclass(frozen=True, eq=False)
class Match:
    """The face that counts as a person, and its cosine to that person's reference."""

    seen: SeenFace
    similarity: float


def clip_t(image: Tensor, text: Tensor) -> float:
    """CLIP-T: cosine of CLIP's projected image and text embeddings, [D] each. The paper does not say which CLIP."""
    return float(F.cosine_similarity(image.float().flatten(), text.float().flatten(), dim=0))


def assign(seen: Sequence[SeenFace], people: Sequence[NDArray[np.float32]]) -> list[Match | None]:
    """For each person, by reference embedding [512], the face that counts as them; None where there are too few faces.

    The assignment maximises the sum of cosines; for one person, it is the most similar face of the picture.
    """
    comparison = compare([one.face for one in seen], [one.embedding for one in seen], people)
    owners = {id(one.face): one for one in seen}
    matches: list[Match | None] = []
    for person in range(len(people)):
        number = comparison.matches.get(person)
        if number is None:
            matches.append(None)
            continue
        similarity = float(comparison.similarities[number, person])
        matches.append(Match(owners[id(comparison.found[number])], similarity))
    return matches


def face_similarity(matches: Sequence[Match | None]) -> float:
    """FaceSim: mean ArcFace cosine to the references. A person without a face counts 0; see ``faces_found``."""
    return sum(match.similarity for match in matches if match) / len(matches)


def faces_found(matches: Sequence[Match | None]) -> float:
    """Share of the people who have a face in the picture."""
    return sum(match is not None for match in matches) / len(matches)


def in_place(matches: Sequence[Match | None], width: int) -> float:
    """In place: share of the people whose face has its centre in their own one of equal columns, from left to right.

    width: of the picture, in pixels. A missing face counts as wrong. The paper names no such measure; this one is ours.
    """
    columns = [None if match is None else int(match.seen.face.centre[0] * len(matches) // width) for match in matches]
    return sum(column == person for person, column in enumerate(columns)) / len(matches)


def expression_share(matches: Sequence[Match | None], asked: Sequence[str]) -> float:
    """Expr: share of the people whose expression is classified as the one asked for. A missing face counts as wrong."""
    return share([None if match is None else match.seen.expression for match in matches], asked)


def pose_share(matches: Sequence[Match | None], asked: Sequence[str]) -> float:
    """Pose: share of the people whose ``pose_class`` is the one asked for. A missing face counts as wrong."""
    return share([None if match is None else pose_class(match.seen.pose) for match in matches], asked)


def share(seen: Sequence[str | None], asked: Sequence[str]) -> float:
    """The share of classes that are those asked for; None matches nothing."""
    return sum(one == wanted for one, wanted in zip(seen, asked, strict=True)) / len(asked)


def pose_class(pose: Tensor) -> str:
    """One of POSES for pitch, yaw, roll [3] in degrees, with the thresholds of the face prompts.

    side: |yaw| of 10 and more, to either side. up, down: pitch above 10 or below -10. Where both hold, the larger of
    |yaw| and |pitch| decides, at a tie side. front: neither. Roll does not count. The paper gives no rule.
    """
    pitch, yaw, _ = pose.tolist()
    aside, nodding = abs(yaw) >= TURN_THRESHOLD, abs(pitch) > TURN_THRESHOLD
    if aside and not (nodding and abs(pitch) > abs(yaw)):
        return SIDE
    if nodding:
        return UP if pitch > 0 else DOWN
    return FRONT


def disruption(picture: Photo, base: Photo, boxes: Sequence[NDArray[np.float32]], margin: float = MARGIN) -> float:
    """Mean absolute difference, 0 to 1, between a picture and the base model's with the same seed, outside all faces.

    boxes: [4] x0, y0, x1, y1 in pixels, the faces of both pictures; each is enlarged by ``margin`` longer sides on all
    sides. NaN if they cover the whole picture. The paper names no such measure; this one is ours.
    """
    outside = np.ones(picture.shape[:2], dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = (float(edge) for edge in box)
        grown = margin * max(x1 - x0, y1 - y0)
        rows = slice(max(0, math.floor(y0 - grown)), max(0, math.ceil(y1 + grown)))
        columns = slice(max(0, math.floor(x0 - grown)), max(0, math.ceil(x1 + grown)))
        outside[rows, columns] = False
    if not outside.any():
        return math.nan
    difference = np.abs(picture.astype(np.float32) - base.astype(np.float32)) / 255
    return float(difference[outside].mean())
