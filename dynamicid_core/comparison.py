"""Matches the faces of a picture to given people by ArcFace similarity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .face_analysis import DetectedFace

SAME_PERSON = 0.35
"""Cosine from which two faces count as one person; that of unrelated people is near 0."""

# Of a cosine, for the largest distance: of equally similar faces, the one nearer to a person's place is taken.
_DISTANCE_PENALTY = 1e-4
# People whose cosine is above 1 less this are one person, placed twice on purpose.
_SAME_EMBEDDING = 1e-4


@dataclass(frozen=True, eq=False)
class Comparison:
    """The faces of a picture compared with given people.

    found: the faces, from left to right. similarities: [found, people] cosines. matches: person -> index of the matched
    face, the assignment with the largest sum; people without a face are missing. warnings: messages for what looks
    wrong.
    """

    found: list[DetectedFace]
    similarities: NDArray[np.float32]
    matches: dict[int, int]
    warnings: list[str]

    @property
    def mean_similarity(self) -> float:
        """Over all people; a person without a face counts 0."""
        people = self.similarities.shape[1]
        return float(sum(self.similarities[face, person] for person, face in self.matches.items()) / max(people, 1))

    def table(self) -> str:
        """Rows of found faces, columns of people, the match of each person marked, warnings below.

        In Markdown, which Preview Any renders, with columns that are aligned in plain text too.
        """
        people = range(self.similarities.shape[1])
        lines = [_row("found", [f"face {person + 1} " for person in people])]
        lines.append(_row("-" * 9, ["-" * 7 + ":" for _ in people]))
        for face, row in enumerate(self.similarities):
            marks = [
                f"{value:.3f}{'*' if self.matches.get(person) == face else ' '}" for person, value in enumerate(row)
            ]
            lines.append(_row(f"number {face + 1}", marks))
        return "\n\n".join(["\n".join(lines), *self.warnings])


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first:<9} | " + " | ".join(f"{cell:>8}" for cell in cells) + " |"


Place = tuple[float, float]
"""Where a person should be, (x, y) in pixels of the picture."""


def compare(
    found: Sequence[DetectedFace],
    embeddings: Sequence[NDArray[np.float32]],
    people: Sequence[NDArray[np.float32]],
    places: Sequence[Place | None] | None = None,
) -> Comparison:
    """Matches the faces of a picture to people; both have an embedding [512] each.

    places: where the people should be, None for anywhere; without it, from left to right in their order.
    """
    sizes = sorted({len(embedding) for embedding in (*embeddings, *people)})
    if len(sizes) > 1:
        raise InputError(
            "The people and the faces in the picture have embeddings of different sizes "
            f"({', '.join(map(str, sizes))}). Encode the photos again with the InsightFace pack that Compare Faces has."
        )
    order = sorted(range(len(found)), key=lambda i: found[i].centre[0])
    faces = [found[i] for i in order]
    if not faces:
        return Comparison([], np.zeros((0, len(people)), np.float32), {}, ["No face was found in the picture."])
    similarities = np.stack([embeddings[i] for i in order]) @ np.stack(people).T
    same = np.stack(people) @ np.stack(people).T > 1 - _SAME_EMBEDDING
    matches = _assign(similarities - _DISTANCE_PENALTY * _distances(faces, places or [None] * len(people)))
    warnings = _warnings(similarities, matches, same) + _swap_warnings(faces, similarities, matches, same, places)
    return Comparison(faces, similarities, matches, warnings)


def _distances(faces: Sequence[DetectedFace], places: Sequence[Place | None]) -> NDArray[np.float32]:
    """From each face to each place, [found, places], at most 1; 0 where there is no place."""
    pixels = [[0.0 if place is None else math.dist(face.centre, place) for place in places] for face in faces]
    return np.array(pixels, np.float32) / max(1.0, *map(max, pixels))


def _assign(similarities: NDArray[np.float32]) -> dict[int, int]:
    from scipy.optimize import linear_sum_assignment

    faces, people = linear_sum_assignment(-similarities)
    return {int(person): int(face) for face, person in zip(faces, people, strict=True)}


def _warnings(similarities: NDArray[np.float32], matches: dict[int, int], same: NDArray[np.bool_]) -> list[str]:
    """same: [people, people], whether two of them are one person."""
    warnings = []
    people = range(similarities.shape[1])
    for person in people:
        alike = [face for face in range(len(similarities)) if similarities[face, person] >= SAME_PERSON]
        nearest = [face for face in alike if int(similarities[face].argmax()) == person]
        if len(nearest) > int(same[person].sum()):
            numbers = " and ".join(str(face + 1) for face in nearest)
            warnings.append(f"Face {person + 1} appears {len(nearest)} times: numbers {numbers}.")
        if person not in matches:
            warnings.append(f"Face {person + 1} is missing: the picture shows fewer faces than people.")
        elif similarities[matches[person], person] < SAME_PERSON:
            value = similarities[matches[person], person]
            warnings.append(f"Face {person + 1} cannot be recognised: number {matches[person] + 1} has {value:.2f}.")
    return warnings


def _swap_warnings(
    faces: Sequence[DetectedFace],
    similarities: NDArray[np.float32],
    matches: dict[int, int],
    same: NDArray[np.bool_],
    places: Sequence[Place | None] | None,
) -> list[str]:
    known = [person for person in sorted(matches) if similarities[matches[person], person] >= SAME_PERSON]
    return [
        f"Faces {first + 1} and {second + 1} have swapped places."
        for i, first in enumerate(known)
        for second in known[i + 1 :]
        if not same[first, second]
        and _are_swapped(
            faces[matches[first]].centre,
            faces[matches[second]].centre,
            None if places is None else (places[first], places[second]),
        )
    ]


def _are_swapped(first: Place, second: Place, meant: tuple[Place | None, Place | None] | None) -> bool:
    if meant is None:
        return first[0] > second[0]
    if meant[0] is None or meant[1] is None:
        return False
    as_meant = math.dist(first, meant[0]) + math.dist(second, meant[1])
    return math.dist(first, meant[1]) + math.dist(second, meant[0]) < as_meant
