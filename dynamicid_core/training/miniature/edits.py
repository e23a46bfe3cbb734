"""Training inputs for the IMR as the nodes produce them: not only measured photos, but keypoints that an editor moved
and source prompts that a classifier read off a photo, not always correctly.

Used in reconfiguration, and in likeness, where the source is another photo of the painted person.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...expression import EXPRESSIONS
from ...face_prompt import face_prompt
from ...imr import Imr, KeypointEncoder
from ...keypoints import Keypoints
from ...motion import AS_IS, MAX_TURN, edit_motion
from ..data.sample import Sample
from ..reconfiguration import ReconfigureBatch, ReconfigureCollator, edited_tokens
from ..stages import ReconfigureStage

Pair = list[Sample]
"""Two photos of one person: the source of edits, and the target to paint."""
_EDITED = 0.5  # share of the people that are edited in likeness
_MOVED = 0.5  # share of the targets whose keypoints are the source's, moved
_MISREAD = 0.25  # share of the sources whose prompt names a random expression: the classifier misreads many renders


@dataclass(frozen=True, eq=False)
class Edits:
    """rows: [E], those of a batch with edited tokens. batch: E people, with a target each."""

    rows: Tensor
    batch: ReconfigureBatch


class Editor(nn.Module):
    """Trains ``imr``. The keypoint encoder stays frozen: there are too few faces for batch normalisation."""

    def __init__(self, imr: Imr, keypoint_encoder: KeypointEncoder) -> None:
        super().__init__()
        self.imr = imr
        self._frozen = (keypoint_encoder.requires_grad_(False).eval(),)  # in a tuple, so that it is no submodule

    def forward(self, edits: Edits) -> Tensor:
        """The tokens of the edits, [E, T, D]."""
        return edited_tokens(self.imr, self._frozen[0], edits.batch)


class EditCollator:
    """Makes edits of pairs."""

    def __init__(self, batches: ReconfigureCollator) -> None:
        self._batches = batches

    def make(self, pairs: list[Pair], shown: Tensor, generator: torch.Generator, device: torch.device) -> Edits | None:
        """Edits of some pairs, None where nobody is edited. shown: [B], whose faces have not been dropped."""
        edited = torch.rand(len(pairs), generator=generator) < _EDITED
        rows = (edited & shown.cpu()).nonzero().flatten()
        if not len(rows):
            return None
        edits = simulate_edits([pairs[row] for row in rows.tolist()], generator)
        return Edits(rows.to(device), self._batches.make(edits, generator, device))


class EditorStage(ReconfigureStage):
    """Reconfiguration on inputs as the nodes produce them."""

    def make_batch(self, raw: list[list[Sample]], generator: torch.Generator, device: torch.device) -> ReconfigureBatch:
        """What ``network`` takes."""
        return super().make_batch(simulate_edits(raw, generator), generator, device)


def simulate_edits(people: list[list[Sample]], generator: torch.Generator) -> list[list[Sample]]:
    """People, each a source and its targets, some with what the editor and the classifier would make of them."""
    return [_simulate_edits(source, targets, generator) for source, *targets in people]


def _simulate_edits(source: Sample, targets: list[Sample], generator: torch.Generator) -> list[Sample]:
    misread, *moves = torch.rand(1 + len(targets), generator=generator).tolist()
    expression = int(torch.randint(len(EXPRESSIONS), (), generator=generator))
    edits = [
        with_edited_keypoints(source, target) if move < _MOVED else target
        for move, target in zip(moves, targets, strict=True)
    ]
    if misread < _MISREAD:
        source = replace(source, face_prompt=face_prompt(EXPRESSIONS[expression], torch.from_numpy(source.pose)))
    return [source, *edits]


def with_edited_keypoints(source: Sample, target: Sample) -> Sample:
    """The target with the source's keypoints as an editor moves them: turned, with the preset of the expression."""
    own = Keypoints(torch.from_numpy(source.keypoints), torch.from_numpy(source.pose))
    pitch, yaw, roll = (target.pose - source.pose).clip(-MAX_TURN, MAX_TURN).tolist()
    keypoints = edit_motion(own, target.expression or AS_IS, yaw, pitch, roll)
    return replace(target, keypoints=keypoints.points.numpy())
