"""Builds a data set from photos, a folder per person: each is measured, filtered and cropped, on all cores."""

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...errors import InputError
from ...face_analysis import DetectedFace, FaceAnalysis, sort_faces
from ...face_packs import model_sizes, open_pack
from ...face_prompt import face_prompt
from ...images import Photo, open_photo
from ...portrait import measure_keypoints, portrait_square
from . import gates
from .gates import Gates, Rejection
from .photos import Person, find_people
from .sample import Record, Sample, sample_key, to_record
from .shards import SHARD_SIZE, ShardWriter
from .workers import in_parallel

_log = logging.getLogger(__name__)
_MAX_ASPECT = 100  # longer side by shorter one; the detector breaks when a side shrinks to no pixel


@dataclass(frozen=True)
class Job:
    """What to build, and how.

    photos, out, pack: folders, the last with InsightFace's models. provider: see ``open_pack``. workers: processes; 1
    means this one. shard_size: minimum samples per shard.
    """

    photos: Path
    out: Path
    pack: Path
    gates: Gates = field(default_factory=Gates)
    provider: str = "auto"
    workers: int = 1
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        for option, value in (("--workers", self.workers), ("--shard-size", self.shard_size)):
            if value < 1:
                raise InputError(f"{option} is {value}; it must be at least 1.")
        if self.photos.resolve() in (self.out.resolve(), *self.out.resolve().parents):
            raise InputError(f"--out {self.out} lies in the folder of photos {self.photos}. Choose one outside of it.")

    def settings(self) -> dict[str, Any]:
        """What another run must share to resume this one's data set."""
        return {"made_by": "build", **asdict(self.gates), "models": model_sizes(self.pack)}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A photo that passes the gates on its own."""

    photo: str
    sample: Sample
    face_side: float


@dataclass(frozen=True)
class PersonRecords:
    """A person's samples for the writer. metadata: for the manifest, and to recognise the folder."""

    name: str
    records: dict[str, Record]
    metadata: dict[str, Any]


def build(job: Job) -> ShardWriter:
    """Makes or completes the data set, with a progress bar, and returns its writer, finished.

    Raises InputError for what the user can fix. However it ends, complete shards stay, and the same job resumes from
    them.
    """
    people, *_ = find_people(job.photos)
    writer = ShardWriter(job.out, job.settings(), shard_size=job.shard_size)
    _check_same_people(people, writer, job)
    done = writer.done
    todo = [person for person in people if person.name not in done]
    counts = Counter(photos=sum(len(person.photos) for person in people if person.name in done))
    total = sum(len(person.photos) for person in people)
    bar = tqdm(total=total, initial=counts["photos"], unit="photo", dynamic_ncols=True)
    with writer, bar, closing(in_parallel(partial(_process_person, job), todo, job.workers)) as results:
        for built in results:
            writer.add(built.name, built.records, built.metadata)
            _warn_of_several_people(built)
            counts.update(people=1, accepted=len(built.records), rejected=len(built.metadata["rejected"]))
            bar.update(built.metadata["photos"])
            bar.set_postfix(people=counts["people"], accepted=counts["accepted"], rejected=counts["rejected"])
    return writer


def build_person(analysis: FaceAnalysis, person: Person, limits: Gates) -> tuple[list[Sample], list[Rejection]]:
    """The samples of a person's photos, and the rejections of the others.

    Raises InputError when the pack has no model for keypoints.
    """
    examined = [examine(analysis, person, photo, limits) for photo in person.photos]
    rejected = [found for found in examined if isinstance(found, Rejection)]
    candidates = [found for found in examined if isinstance(found, Candidate)]
    for gate in (_without_duplicates, _without_strangers, _unless_too_few):
        candidates, out = gate(candidates, limits)
        rejected += [Rejection(f"{person.name}/{photo}", reason, detail) for photo, reason, detail in out]
    return [candidate.sample for candidate in candidates], sorted(rejected, key=lambda found: found.photo)


def examine(analysis: FaceAnalysis, person: Person, photo: str, limits: Gates) -> Candidate | Rejection:
    """One photo of a person, measured and cropped, or the reason why it is rejected."""

    def rejected(reason: str, detail: str) -> Rejection:
        return Rejection(f"{person.name}/{photo}", reason, detail)

    try:
        pixels = open_photo(person.folder / photo)
    except InputError as error:
        return rejected(gates.UNREADABLE, str(error))
    height, width = pixels.shape[:2]
    thin = max(height, width) > _MAX_ASPECT * min(height, width)
    if not thin:
        pixels, faces, _ = analysis.turn_upright(pixels)
    if thin or not faces:
        return rejected(gates.NO_FACE, f"{width} x {height}")
    face, *others = sort_faces(faces, "largest", pixels)
    large = [other for other in others if other.area >= gates.OTHER_FACE * face.area]
    if large:
        return rejected(gates.SEVERAL_FACES, f"{1 + len(large)} faces of similar size")
    side = gates.longer_side(face)
    if side < limits.min_face:
        return rejected(gates.SMALL_FACE, f"{side:.0f} pixels, at least {limits.min_face} needed")
    sharpness = gates.sharpness(pixels, face)
    if sharpness < limits.sharpness:
        return rejected(gates.BLURRED, f"sharpness {sharpness:.4f}, at least {limits.sharpness:g} needed")
    number = person.photos.index(photo) + 1
    sample = _sample(analysis, pixels, face, person, photo, sample_key(person.name, number), limits.size)
    return Candidate(photo, sample, side)


def _sample(
    analysis: FaceAnalysis, pixels: Photo, face: DetectedFace, person: Person, photo: str, key: str, size: int
) -> Sample:
    square = portrait_square(pixels, face)
    keypoints = measure_keypoints(pixels, face, square)
    portrait = Image.fromarray(square.crop(pixels)).resize((size, size), Image.Resampling.LANCZOS)
    return Sample(
        key=key,
        identity=person.name,
        picture=np.asarray(portrait),
        caption=person.caption(photo),
        face_prompt=face_prompt(keypoints.expression, keypoints.pose),
        expression=keypoints.expression,
        pose=keypoints.pose.numpy().astype(np.float32),
        keypoints=keypoints.points.numpy(),
        embedding=analysis.embed(pixels, face),
        embedding_rgb=analysis.embed(pixels, face, "rgb"),
        labels={"photo": f"{person.name}/{photo}"},
    )


_Filtered = tuple[list[Candidate], list[tuple[str, str, str]]]
"""The candidates that stay; photo, reason and detail of the others."""


def _without_duplicates(candidates: list[Candidate], _: Gates) -> _Filtered:
    """Keeps the one with the largest face of photos that are the same."""
    kept: dict[int, Any] = {}
    out = []
    small = [gates.thumbnail(candidate.sample.picture) for candidate in candidates]
    for i in sorted(range(len(candidates)), key=lambda i: -candidates[i].face_side):
        points = candidates[i].sample.keypoints
        same = (j for j in kept if gates.is_duplicate(small[i], points, small[j], candidates[j].sample.keypoints))
        twin = next(same, None)
        if twin is None:
            kept[i] = candidates[i]
        else:
            out.append((candidates[i].photo, gates.DUPLICATE, f"of {candidates[twin].photo}"))
    return [kept[i] for i in sorted(kept)], out


def _without_strangers(candidates: list[Candidate], limits: Gates) -> _Filtered:
    found = gates.strangers([candidate.sample.embedding for candidate in candidates], limits.agreement)
    kept = [candidate for i, candidate in enumerate(candidates) if i not in found]
    detail = "cosine {:.2f} to the others, at least {:g} needed"
    out = [
        (candidates[i].photo, gates.ANOTHER_PERSON, detail.format(cosine, limits.agreement))
        for i, cosine in found.items()
    ]
    return kept, out


def _unless_too_few(candidates: list[Candidate], limits: Gates) -> _Filtered:
    if len(candidates) >= limits.least_photos:
        return candidates, []
    detail = f"{len(candidates)} of the person left, at least {limits.least_photos} needed"
    return [], [(candidate.photo, gates.TOO_FEW, detail) for candidate in candidates]


def _process_person(job: Job, person: Person) -> PersonRecords:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # InsightFace uses what scikit-image is about to rename
        samples, rejected = build_person(_open_analysis(job.pack, job.provider), person, job.gates)
    metadata = {
        "checksum": person.checksum(),
        "photos": len(person.photos),
        "expressions": Counter(sample.expression for sample in samples),
        "views": Counter(sample.face_prompt.split(", ", 1)[1] for sample in samples),
        "rejected": [[found.photo, found.reason, found.detail] for found in rejected],
    }
    return PersonRecords(person.name, {sample.key: to_record(sample) for sample in samples}, metadata)


def _warn_of_several_people(built: PersonRecords) -> None:
    strangers = sum(reason == gates.ANOTHER_PERSON for _, reason, _ in built.metadata["rejected"])
    if 2 * strangers > built.metadata["photos"]:
        _log.warning(
            "The folder %s looks like one of several people: %d of %d photos show another person than the others.",
            built.name,
            strangers,
            built.metadata["photos"],
        )


@cache
def _open_analysis(pack: Path, provider: str) -> FaceAnalysis:
    return open_pack(pack, provider, threads=1)


def _check_same_people(people: Sequence[Person], writer: ShardWriter, job: Job) -> None:
    """Raises InputError when a person in the data set has other photos or captions now, or none."""
    checksums = {person["name"]: person["checksum"] for person in writer.progress.people}
    now = {person.name: person.checksum() for person in people if person.name in checksums}
    differing = sorted(name for name in checksums if checksums[name] != now.get(name))
    if differing:
        how = "has other photos or captions now" if differing[0] in now else "is not there"
        raise InputError(
            f"{job.out} holds a data set of other photos than those in {job.photos}: of {len(checksums)} people in it "
            f"{len(differing)} differ; {differing[0]} {how}. Choose another --out folder. (New people may be added.)"
        )
