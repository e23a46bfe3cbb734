"""Pictures that the finished miniature paints of its data's people, to learn from: latents as sampled."""

from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ...comfy_host.miniature import LATENT_CHANNELS, PICTURE_HEIGHT, PICTURE_WIDTH
from ...comfy_host.painting import BaseModel, Sampling, paint_latents
from ...evaluation.cases import MOTIONS, Motion
from ...face import Face, Placement
from ...images import photos_from_image
from ...keypoints import KEYPOINT_COUNT
from ...regions import LATENT_CELL
from ...saa import SaaSettings
from ..data.sample import EMBEDDING_SIZE
from ..data.shards import SampleIndex
from ..data.storage import write_atomically
from .bench import CFG, Bench, enlarged, prompt_for
from .judge import COLOURS

_STEPS = 10
_PEOPLE_PER_FILE = 20  # people
_SEED = 5


@dataclass(frozen=True, eq=False)
class Painted:
    """latents: [N, C, h, w]. keypoints: [N, 106, 2] of their faces, in fractions of the pictures. identities: [N, 512],
    of length 1, of the photos they were painted from.
    """

    latents: Tensor
    keypoints: Tensor
    identities: Tensor

    def __len__(self) -> int:
        return len(self.latents)


def paint_people(bench: Bench, data: Path, pictures: int, folder: Path) -> Painted:
    """``pictures`` pictures of each person as a photo shows them, and as many edited; those without a face left out.

    folder: where they are saved; what is there already is not painted again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = SampleIndex(data)
    names = list(index.people)
    parts = [names[start : start + _PEOPLE_PER_FILE] for start in range(0, len(names), _PEOPLE_PER_FILE)]
    for number, some in enumerate(tqdm(parts, unit="people", unit_scale=_PEOPLE_PER_FILE, desc="painted")):
        file = folder / f"{number:04d}.safetensors"
        if not file.is_file():
            found = chain.from_iterable(
                _paint_person(bench, index, name, pictures, number * _PEOPLE_PER_FILE + place)
                for place, name in enumerate(some)
            )
            write_atomically(file, save(vars(_joined(list(found)))))
    saved = [load_file(folder / f"{number:04d}.safetensors") for number in range(len(parts))]
    return Painted(**{field.name: torch.cat([part[field.name] for part in saved]) for field in fields(Painted)})


def _paint_person(bench: Bench, index: SampleIndex, name: str, pictures: int, turn: int) -> list[Painted]:
    rng = np.random.default_rng((_SEED, turn))
    samples = index.samples(name)
    shown = samples[rng.integers(len(samples))]
    person = bench.person(shown.identity, shown.picture)
    motion = Motion(*MOTIONS[rng.integers(len(MOTIONS))], right=bool(rng.integers(2)))
    identity = torch.from_numpy(person.embedding)
    painted = []
    for face in (person.face, bench.edit(person, motion)):
        clothes, background = rng.choice(COLOURS, 2, replace=False).tolist()
        prompt, seed = prompt_for(1, clothes, background), int(rng.integers(2**31))
        painted += _with_faces(bench, _latents(bench, face, prompt, pictures, seed), identity)
    return painted


def _latents(bench: Bench, face: Face, prompt: str, pictures: int, seed: int) -> Tensor:
    mini = bench.miniature
    base, placements = BaseModel(mini.model, mini.clip, mini.vae), [Placement(face, None)]
    sampling = Sampling(PICTURE_WIDTH, PICTURE_HEIGHT, _STEPS, CFG, "euler", "normal", batch=pictures)
    return paint_latents(base, mini.dynamicid, placements, SaaSettings(), prompt, "", sampling, seed).float().cpu()


@torch.inference_mode()
def _with_faces(bench: Bench, latents: Tensor, identity: Tensor) -> list[Painted]:
    """Those with a detected face, one each."""
    painted = []
    for latent, photo in zip(latents, photos_from_image(bench.miniature.vae.decode(latents)), strict=True):
        faces = bench.faces(photo)
        if faces and faces[0].keypoints is not None:
            height, width = enlarged(photo).shape[:2]
            points = torch.from_numpy(np.asarray(faces[0].keypoints, np.float32)) / torch.tensor((width, height))
            painted.append(Painted(latent[None].clone(), points[None], identity[None]))
    return painted


def _joined(painted: list[Painted]) -> Painted:
    """All in one; empty for an empty list."""
    latents = torch.empty(0, LATENT_CHANNELS, PICTURE_HEIGHT // LATENT_CELL, PICTURE_WIDTH // LATENT_CELL)
    none = Painted(latents, torch.empty(0, KEYPOINT_COUNT, 2), torch.empty(0, EMBEDDING_SIZE))
    return Painted(*(torch.cat([getattr(one, field.name) for one in [none, *painted]]) for field in fields(Painted)))
