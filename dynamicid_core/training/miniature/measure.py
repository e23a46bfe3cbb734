"""Measures the miniature on people that no stage ever saw, as the nodes run it, with real InsightFace models.

Everything is measured on the finished files as ComfyUI loads them, in half precision, as they are shipped.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...evaluation.cases import Motion, looks_right, motions_for
from ...evaluation.metrics import SIDE, pose_class
from ...expression import EXPRESSIONS
from ...images import Photo, to_image, to_photos
from ..data.sample import Sample
from .bench import ENLARGED, NO_IMR, SETTINGS, Bench, Person, Setting, prompt_for
from .framing import close_up
from .judge import COLOURS, true_answers
from .measurement_cache import MeasurementCache

VERSION = 2
"""Of the cases and findings. Cached measurements of another version are not used."""
_STEP_COUNTS = (4, 6, 8, 12, 20, 30)
_SAMPLERS = ("euler", "dpmpp_2m", "ddim")


@dataclass(frozen=True)
class Finding:
    """One person of one picture. own: cosine to their photo; others: to the photos of everybody else. nearest: whether
    the nearest of the people in the picture is they. Without a face all are None and nothing is right. crowded: whether
    the picture shows more faces than people. right: to which side of the picture they were asked to look, None for
    neither.
    """

    setting: str
    people: int
    own: float | None
    others: list[float]
    nearest: bool
    expression: bool
    pose: bool
    clothes: bool
    background: bool
    crowded: bool
    right: bool | None = None


# --- the ceilings ----------------------------------------------------------------------------------------------------


def ceilings(
    bench: Bench, samples: Sequence[Sample], people: Sequence[Person], cache: MeasurementCache
) -> dict[str, Any]:
    """The figures of true renders of the same people, and of their reconstructions by the autoencoder.

    samples: pictures of ``people``, the first of each left out here.
    """
    transforms: dict[str, Callable[[Photo], Photo]] = {
        "renders": lambda photo: photo,
        "after the autoencoder": lambda photo: _reconstructed(bench, photo),
    }
    return {
        name: cache.get_or_measure(name, partial(_ceiling, bench, samples, people, transform))
        for name, transform in transforms.items()
    }


def _ceiling(
    bench: Bench, samples: Sequence[Sample], people: Sequence[Person], transform: Callable[[Photo], Photo]
) -> dict[str, float]:
    own: list[float] = []
    others: list[list[float]] = []
    to_original: list[float] = []
    right: dict[str, list[bool]] = {name: [] for name in ("found", "expression", "pose", "clothes", "background")}
    for sample in tqdm(samples, unit="picture"):
        photo = transform(_close_up(sample.picture))
        faces = bench.faces(photo)
        right["found"].append(bool(faces))
        if not faces:
            continue
        embedding, verdict, pose = bench.inspect(photo, faces[0])
        own += [float(embedding @ person.embedding) for person in people if person.name == sample.identity]
        others.append([float(embedding @ person.embedding) for person in people if person.name != sample.identity])
        to_original.append(float(embedding @ sample.embedding))
        answers = true_answers(sample)
        right["expression"].append(EXPRESSIONS.index(verdict.expression) == answers["expression"])
        right["pose"].append(pose == pose_class(torch.from_numpy(sample.pose)))
        right["clothes"].append(COLOURS.index(verdict.clothes) == answers["clothes"])
        if answers["background"] >= 0:
            right["background"].append(COLOURS.index(verdict.background) == answers["background"])
    return {
        "own": _mean(own),
        **_separation(own, others),
        "to the original": _mean(to_original),
        **{name: _mean(values) for name, values in right.items()},
    }


def _close_up(photo: Photo) -> Photo:
    """As the miniature frames people."""
    return to_photos(close_up(to_image([photo])))[0]


@torch.inference_mode()
def _reconstructed(bench: Bench, photo: Photo) -> Photo:
    vae = bench.miniature.vae
    return to_photos(vae.decode(vae.encode(to_image([photo]))))[0]


# --- pictures --------------------------------------------------------------------------------------------------------


def measure(
    bench: Bench,
    people: Sequence[Person],
    number: int,
    cases: int,
    settings: Sequence[Setting],
    cache: MeasurementCache,
) -> list[Finding]:
    """Findings of ``cases`` pictures of ``number`` people with each setting; the cache keeps the pictures, too."""
    findings = []
    for case, setting in tqdm(list(product(range(cases), settings)), unit="picture", desc=f"{number} people"):
        name = f"{number}-{SETTINGS.index(setting)}-{case:03d}"
        picture = cache.folder / f"{name}.png"
        found = cache.get_or_measure(name, partial(_case, bench, people, number, case, setting, picture), picture)
        findings += [Finding(**one) for one in found]
    return findings


def _case(
    bench: Bench, people: Sequence[Person], number: int, case: int, setting: Setting, picture: Path
) -> list[dict[str, Any]]:
    """One picture's findings, as dictionaries."""
    rng = np.random.default_rng((8, number, case))
    group = [people[(case * number + i) % len(people)] for i in range(number)]
    motions = motions_asked(case, number)
    clothes, background = rng.choice(COLOURS, 2, replace=False).tolist()
    faces = [
        bench.edit(person, motion) if setting.edit else person.face
        for person, motion in zip(group, motions, strict=True)
    ]
    photo = bench.paint(faces, setting, prompt_for(number, clothes, background), case)
    Image.fromarray(photo).save(picture)
    return [asdict(one) for one in find(bench, photo, group, people, motions, clothes, background, setting.label)]


def motions_asked(case: int, number: int) -> tuple[Motion, ...]:
    """What a case asks of so many people."""
    return motions_for(case, number, looks_right(case))


def find(
    bench: Bench,
    photo: Photo,
    group: Sequence[Person],
    everybody: Sequence[Person],
    motions: Sequence[Motion],
    clothes: str,
    background: str,
    setting: str,
) -> list[Finding]:
    """The findings of a group: the face in a person's column counts as theirs."""
    width = photo.shape[1] * ENLARGED
    faces = bench.faces(photo)
    crowded = len(faces) > len(group)
    if len(group) == 1:
        faces = faces[:1]
    findings = []
    for place, (person, motion) in enumerate(zip(group, motions, strict=True)):
        here = (
            [face for face in faces if int(face.centre[0] / width * len(group)) == place] if len(group) > 1 else faces
        )
        right = motion.right if motion.pose == SIDE else None
        if not here:
            findings.append(Finding(setting, len(group), None, [], False, False, False, False, False, crowded, right))
            continue
        embedding, verdict, pose = bench.inspect(photo, here[0])
        own = float(embedding @ person.embedding)
        findings.append(
            Finding(
                setting=setting,
                people=len(group),
                own=own,
                others=[float(embedding @ other.embedding) for other in everybody if other.name != person.name],
                nearest=own >= max(float(embedding @ other.embedding) for other in group),
                expression=verdict.expression == motion.expression,
                pose=pose == motion.pose,
                clothes=verdict.clothes == clothes,
                background=verdict.background == background,
                crowded=crowded,
                right=right,
            )
        )
    return findings


def few_steps(bench: Bench, people: Sequence[Person], cases: int, cache: MeasurementCache) -> list[dict[str, Any]]:
    """Similarity and separation by number of steps, for three samplers: rows for a plot."""
    rows = []
    for sampler, steps in tqdm(list(product(_SAMPLERS, _STEP_COUNTS)), desc="few steps"):
        scheduler = "ddim_uniform" if sampler == "ddim" else "normal"
        quick = replace(bench, steps=steps, sampler=sampler, scheduler=scheduler)
        of_these = cache.get_or_measure(f"{sampler}-{steps}", partial(_with_steps, quick, people, cases))
        rows.append({"sampler": sampler, "steps": quick.unet_steps, **of_these})
    return rows


def _with_steps(bench: Bench, people: Sequence[Person], cases: int) -> dict[str, float]:
    findings = []
    for case in range(cases):
        person, clothes, background = (
            people[case % len(people)],
            COLOURS[case % len(COLOURS)],
            COLOURS[(case + 5) % len(COLOURS)],
        )
        photo = bench.paint([person.face], NO_IMR, prompt_for(1, clothes, background), case)
        still = Motion("neutral", "front")
        findings += find(bench, photo, [person], people, [still], clothes, background, "")
    return summary(findings)


# --- figures ---------------------------------------------------------------------------------------------------------


def summary(findings: Sequence[Finding]) -> dict[str, float]:
    """Means over findings; a person without a face counts as 0 and as wrong. "pose to the right", "pose to the left":
    of those who were asked to look there, if any.
    """
    turned = {
        f"pose to the {side}": [one.pose for one in findings if one.right is right]
        for side, right in (("right", True), ("left", False))
    }
    found = [one for one in findings if one.own is not None]
    own = [one.own for one in found if one.own is not None]
    return {
        "own": sum(own) / max(1, len(findings)),
        **_separation(own, [one.others for one in found]),
        "found": len(found) / max(1, len(findings)),
        **{
            name: _mean([getattr(one, name) for one in findings])
            for name in ("nearest", "expression", "pose", "clothes", "background", "crowded")
        },
        **{name: _mean(poses) for name, poses in turned.items() if poses},
    }


def _separation(own: Sequence[float], others: Sequence[Sequence[float]]) -> dict[str, float]:
    """How well faces separate their person from the others. own, others: cosines, of each face.

    auc: of all faces together, as for one threshold on all pictures. auc in a picture: the mean of each face's own,
    which is unaffected by a picture in which all similarities are low.
    """
    everybody = list(chain.from_iterable(others))
    return {
        "others": _mean(everybody),
        "auc": auc(own, everybody),
        "auc in a picture": _mean(auc([mine], of_others) for mine, of_others in zip(own, others, strict=True)),
    }


def auc(own: Sequence[float], others: Sequence[float]) -> float:
    """Area under the ROC curve: how often a value of ``own`` is above one of ``others``. 0.5 where either is empty."""
    if not len(own) or not len(others):
        return 0.5
    below = np.searchsorted(np.sort(others), own, "left") + np.searchsorted(np.sort(others), own, "right")
    return float(below.mean() / 2 / len(others))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else 0.0
