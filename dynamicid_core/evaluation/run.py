"""Paints and measures every case with every setting, resuming where an earlier run stopped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..face import Face
from ..files import atomic_write, explain_write_errors
from ..images import Photo, open_photo
from ..portrait import missing_keypoints_model
from . import metrics
from .cases import Case, Motion, Reference
from .results import RESUME_HINT, Results, Row, join_people, split_people
from .settings import BASE, Setting


class Pipeline(Protocol):
    """Paints and analyses pictures."""

    def encode(self, photo: Photo) -> Face:
        """The largest face of a photo."""

    def edit(self, face: Face, motion: Motion) -> Face:
        """The face with another expression and pose."""

    def paint(self, faces: Sequence[Face], gate: bool, prompt: str, seed: int) -> Photo:
        """A picture of these people, from left to right; without any, by the base model alone."""

    def find_faces(self, photo: Photo) -> list[metrics.SeenFace]:
        """All faces of a picture."""

    def clip_t(self, photo: Photo, prompt: str) -> float | None:
        """CLIP-T; None without a CLIP for it."""


def evaluate(
    pipeline: Pipeline,
    references: Sequence[Reference],
    cases: Sequence[Case],
    settings: Sequence[Setting],
    results: Results,
) -> None:
    """Adds a row to the results for every case with every setting, and one for every picture of the base model.

    What is there already is not painted again. Without editing, cases that differ only in the motion share a picture.
    Raises InputError for a reference without a usable face.
    """
    every = [(case, setting) for case in cases for setting in settings]
    missing = [(case, setting) for case, setting in every if not results.has(setting.name, case.key)]
    needed = {name for case, _ in missing for name in case.people}
    faces = {one.name: _encode(pipeline, one) for one in references if one.name in needed}
    without_editing = {setting.name for setting in settings if not setting.edit}
    unedited = {_subject(row): row for row in results.rows if row.setting in without_editing}
    run = _Run(pipeline, results, faces, unedited)
    for case, setting in tqdm(missing, initial=len(every) - len(missing), total=len(every), unit="picture"):
        run.measure(case, setting)


@dataclass(frozen=True, eq=False)
class _BasePicture:
    photo: Photo
    faces: list[metrics.SeenFace]


_Subject = tuple[str, str, str, int]
"""What a picture without editing depends on: the setting, the names, the prompt and the seed."""


@dataclass(eq=False)
class _Run:
    """unedited: a row of each existing picture without editing."""

    pipeline: Pipeline
    results: Results
    faces: dict[str, Face]
    unedited: dict[_Subject, Row]
    base_pictures: dict[str, _BasePicture] = field(default_factory=dict)

    def measure(self, case: Case, setting: Setting) -> None:
        twin = None if setting.edit else self.unedited.get((setting.name, _names(case), case.prompt, case.seed))
        if twin is not None and (self.results.folder / twin.picture).is_file():
            self.results.add(_row_for_motion(twin, case))
            return
        row = self._paint_and_measure(case, setting)
        self.results.add(row)
        if not setting.edit:
            self.unedited[_subject(row)] = row

    def _paint_and_measure(self, case: Case, setting: Setting) -> Row:
        base = self._base(case)
        people = [self.faces[name] for name in case.people]
        if setting.edit:
            edited = [self.pipeline.edit(face, motion) for face, motion in zip(people, case.motions, strict=True)]
        photo = self.pipeline.paint(edited if setting.edit else people, setting.gate, case.prompt, case.seed)
        path = _picture_path(setting.name, case.key if setting.edit else case.unedited_key)
        _save(photo, self.results.folder / path)
        seen = self.pipeline.find_faces(photo)
        matches = metrics.assign(seen, [face.require_embedding().numpy() for face in people])
        disruption = metrics.disruption(photo, base.photo, [one.face.box for one in [*seen, *base.faces]])
        return Row(
            setting=setting.name,
            case=case.key,
            people=len(people),
            names=_names(case),
            prompt=case.prompt,
            seed=case.seed,
            asked=_asked(case),
            seen=join_people(_describe(match) for match in matches),
            similarities=join_people("none" if match is None else f"{match.similarity:.4f}" for match in matches),
            clip_t=self.pipeline.clip_t(photo, case.prompt),
            face_sim=metrics.face_similarity(matches),
            expression=metrics.expression_share(matches, [motion.expression for motion in case.motions]),
            pose=metrics.pose_share(matches, [motion.pose for motion in case.motions]),
            faces=metrics.faces_found(matches),
            in_place=metrics.in_place(matches, photo.shape[1]) if len(people) > 1 else None,
            disruption=None if math.isnan(disruption) else disruption,
            picture=path,
        )

    def _base(self, case: Case) -> _BasePicture:
        """The base model's picture of a case, painted once for all cases that differ only in people or motion."""
        key = case.base_key
        if key not in self.base_pictures:
            path = _picture_path(BASE.name, key)
            # Without a row, it may be left over from a run with other settings.
            if self.results.has(BASE.name, key) and (self.results.folder / path).is_file():
                photo = open_photo(self.results.folder / path)
            else:
                photo = self.pipeline.paint([], False, case.prompt, case.seed)
                _save(photo, self.results.folder / path)
            self.base_pictures[key] = _BasePicture(photo, self.pipeline.find_faces(photo))
            if not self.results.has(BASE.name, key):
                self.results.add(self._base_row(case, photo, path))
        return self.base_pictures[key]

    def _base_row(self, case: Case, photo: Photo, path: str) -> Row:
        return Row(
            setting=BASE.name,
            case=case.base_key,
            people=len(case.people),
            names="",
            prompt=case.prompt,
            seed=case.seed,
            asked="",
            seen="",
            similarities="",
            clip_t=self.pipeline.clip_t(photo, case.prompt),
            face_sim=None,
            expression=None,
            pose=None,
            faces=None,
            in_place=None,
            disruption=None,
            picture=path,
        )


def _encode(pipeline: Pipeline, reference: Reference) -> Face:
    try:
        face = pipeline.encode(reference.read())
    except InputError as error:
        raise InputError(f"{error} (reference {reference.name}: {reference.path})") from error
    if face.keypoints is None:  # needed to edit and to measure poses
        raise missing_keypoints_model()
    return face


def _row_for_motion(row: Row, case: Case) -> Row:
    """The row of a case from that of another one that differs only in the motion and shares the picture."""
    seen = [described.split() for described in split_people(row.seen)]  # "none" matches no expression and no pose
    return replace(
        row,
        case=case.key,
        asked=_asked(case),
        expression=metrics.share([words[0] for words in seen], [motion.expression for motion in case.motions]),
        pose=metrics.share([words[-1] for words in seen], [motion.pose for motion in case.motions]),
    )


def _subject(row: Row) -> _Subject:
    return row.setting, row.names, row.prompt, row.seed


def _names(case: Case) -> str:
    return join_people(case.people)


def _asked(case: Case) -> str:
    return join_people(f"{motion.expression} {motion.pose}" for motion in case.motions)


def _describe(match: metrics.Match | None) -> str:
    return "none" if match is None else f"{match.seen.expression} {metrics.pose_class(match.seen.pose)}"


def _picture_path(setting: str, key: str) -> str:
    return f"pictures/{setting}/{key}.png"


def _save(photo: Photo, path: Path) -> None:
    """Writes a picture atomically."""
    with explain_write_errors(path, RESUME_HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            Image.fromarray(photo).save(unfinished, format="PNG")
