"""The finished miniature as the nodes run it, and what inspects its pictures: InsightFace and the judge.

Used to measure it, and to paint what its decoder learns from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...comfy_host.encoding import encode_photos
from ...comfy_host.miniature import PICTURE_HEIGHT, PICTURE_WIDTH, Miniature, load_miniature
from ...comfy_host.painting import BaseModel, Sampling, paint, unet_steps
from ...evaluation.cases import Motion
from ...evaluation.metrics import pose_class
from ...evaluation.pipeline import with_motion
from ...face import Face, Placement
from ...face_analysis import DetectedFace, FaceAnalysis
from ...face_packs import open_pack
from ...head import solve_pose
from ...images import Photo
from ...layouts import equal_columns
from ...portrait import keypoints_in, portrait_square
from ...regions import Box
from ...saa import SaaSettings
from ..synthetic.people import article
from ..synthetic.shots import BACKGROUNDS
from .judge import JUDGE_FILE, SIZE, Judge, Verdict, classify, open_judge
from .workspace import Workspace

STEPS, CFG = 20, 4.0
ENLARGED = 3
"""Factor by which pictures are enlarged before face detection: the detector misses faces this small."""
_COLUMN = 144  # pixels of width for each of several people
_NUMBER_WORDS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Setting:
    """What is enabled: SAA's gate, the people's regions, and editing by the IMR."""

    label: str
    gate: bool = True
    regions: bool = True
    edit: bool = True


FULL = Setting("DynamicID")
NO_SAA = Setting("without SAA's gate and masks", gate=False, regions=False)
NO_IMR = Setting("without IMR", edit=False)
SETTINGS = (FULL, NO_SAA, NO_IMR)


@dataclass(frozen=True, eq=False)
class Person:
    """A person not seen in training. photo: the one that is encoded. embedding: its [512]."""

    name: str
    photo: Photo
    face: Face
    embedding: NDArray[np.float32]


@dataclass(eq=False)
class Bench:
    """The models that paint, and those that inspect pictures."""

    miniature: Miniature
    analysis: FaceAnalysis
    judge: Judge
    steps: int = STEPS
    cfg: float = CFG
    sampler: str = "euler"
    scheduler: str = "normal"

    @property
    def unet_steps(self) -> int:
        """How many steps are really made, see ``unet_steps``."""
        return unet_steps(self.miniature.model, self.scheduler, self.steps)

    @torch.inference_mode()
    def person(self, name: str, photo: Photo) -> Person:
        """A person from a photo."""
        mini = self.miniature
        face = encode_photos(mini.dynamicid, self.analysis, mini.clip_vision, [photo])[0]
        return Person(name, photo, face, face.require_embedding().numpy())

    def edit(self, person: Person, motion: Motion) -> Face:
        """The face of a person with the expression and pose of a motion."""
        return with_motion(self.miniature.dynamicid, self.miniature.clip, person.face, motion)

    def paint(self, faces: Sequence[Face], setting: Setting, prompt: str, seed: int) -> Photo:
        """A picture of these people: one anywhere, several in equal columns."""
        mini = self.miniature
        several = setting.regions and len(faces) > 1
        columns: Sequence[Box | None] = equal_columns(len(faces)) if several else [None] * len(faces)
        width = PICTURE_WIDTH if len(faces) == 1 else _COLUMN * len(faces)
        return paint(
            BaseModel(mini.model, mini.clip, mini.vae),
            mini.dynamicid,
            [Placement(face, column) for face, column in zip(faces, columns, strict=True)],
            SaaSettings(gate=setting.gate),
            prompt,
            "",
            Sampling(width, PICTURE_HEIGHT, self.steps, self.cfg, self.sampler, self.scheduler),
            seed,
        )[0]

    def faces(self, photo: Photo) -> list[DetectedFace]:
        """The faces of a picture, in pixels of ``enlarged``."""
        return self.analysis.detect(enlarged(photo))

    def inspect(self, photo: Photo, face: DetectedFace) -> tuple[NDArray[np.float32], Verdict, str]:
        """A face's embedding [512], the judge's verdict, and the class of its pose."""
        large = enlarged(photo)
        portrait = Image.fromarray(_framed_as_in_the_data(large, face)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pose = solve_pose(keypoints_in(portrait_square(large, face), face))
        return self.analysis.embed(large, face), classify(self.judge, [np.asarray(portrait)])[0], pose_class(pose)


def open_bench(workspace: Workspace) -> Bench:
    """A bench with the packed files."""
    folder = workspace.out / "miniature"
    analysis = open_pack(workspace.pack, "CPU" if workspace.cpu else "auto")
    return Bench(load_miniature(folder), analysis, open_judge(folder / JUDGE_FILE))


def _framed_as_in_the_data(large: Photo, face: DetectedFace) -> Photo:
    """The portrait of a face framed as in the judge's training data; a close-up's edges are extended."""
    width = int(max(face.box[2:] - face.box[:2]))
    wider = np.pad(large, ((width, width), (width, width), (0, 0)), mode="edge")
    moved = replace(face, box=face.box + width)
    return portrait_square(wider, moved).crop(wider)


def enlarged(photo: Photo) -> Photo:
    """A picture with three times the pixels in each direction."""
    height, width = photo.shape[:2]
    size = (width * ENLARGED, height * ENLARGED)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def prompt_for(number: int, clothes: str, background: str) -> str:
    """A prompt in the miniature's vocabulary; for several people, it names only the background."""
    where = BACKGROUNDS["plain"].format(background)
    if number > 1:
        return f"{_NUMBER_WORDS[number]} people {where}"
    return f"a portrait of a person, wearing {article(clothes)} {clothes} T-shirt, {where}"
