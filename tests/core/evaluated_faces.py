"""Test data of evaluations: faces, photos of three people, and a fake pipeline."""

import numpy as np
import torch
from PIL import Image

from dynamicid_core.evaluation.cases import plan
from dynamicid_core.evaluation.metrics import SeenFace
from dynamicid_core.evaluation.results import Results, Row
from dynamicid_core.evaluation.run import evaluate
from dynamicid_core.evaluation.settings import FULL, NO_GATE, NO_IMR
from dynamicid_core.face import Face
from dynamicid_core.face_analysis import DetectedFace

SIDE = 32
"""Side of photos, in pixels."""


def unit(*values):
    vector = np.zeros(512, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def seen(embedding, x=10.0, expression="happy", pose=(0.0, 0.0, 0.0)):
    box = np.array([x - 2, 8, x + 2, 12], np.float32)
    return SeenFace(DetectedFace(box, 0.9, np.zeros((5, 2), np.float32)), embedding, expression, torch.tensor(pose))


def save_photo(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), colour).save(path)


class FakePipeline:
    """Paints plain pictures in which the requested people are found, and records them."""

    def __init__(self, stop_after=None):
        self.painted, self.stop_after, self.edited = [], stop_after, 0

    def encode(self, photo):
        tokens = torch.full((1, 4, 8), float(photo[0, 0, 0]))
        embedding = torch.from_numpy(unit(*photo[0, 0].astype(float)))
        return Face(tokens, tokens, "token size 8", embedding, keypoints=torch.zeros(106, 2), pose=torch.zeros(3))

    def edit(self, face, motion):
        self.edited += 1
        return face

    def paint(self, faces, gate, prompt, seed):
        if self.stop_after == len(self.painted):
            raise KeyboardInterrupt
        self.painted.append((len(faces), gate, prompt, seed))
        self.people = [face.embedding.numpy() for face in faces]
        return np.full((SIDE, SIDE, 3), 10 * len(faces), np.uint8)

    def find_faces(self, photo):
        return [seen(embedding, x=8.0 * i + 4) for i, embedding in enumerate(self.people)] if photo.any() else []

    def clip_t(self, photo, prompt):
        return 0.25


def cases_of(references, people, limit=4):
    return plan([one.name for one in references], people, seeds=1, limit=limit)


def run_evaluation(pipeline, references, folder, people=(1, 2), settings=(FULL, NO_GATE, NO_IMR)):
    results = Results(folder, {"steps": 2})
    cases = [case for number in people for case in cases_of(references, number)]
    evaluate(pipeline, references, cases, settings, results)
    return results


def row(setting=FULL, people=1, **changes):
    given = {
        "setting": setting.name, "case": "c", "people": people, "names": "a", "prompt": "p", "seed": 0, "asked": "x",
        "seen": "y", "similarities": "0.5", "clip_t": 0.2, "face_sim": 0.5, "expression": 1.0, "pose": 0.0,
        "faces": 1.0, "in_place": None, "disruption": 0.1, "picture": "none.png",
    }  # fmt: skip
    return Row(**{**given, **changes})
