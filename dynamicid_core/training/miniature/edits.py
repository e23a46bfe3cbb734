"""What the nodes ask of the miniature's IMR: not only photos that were measured, but keypoints that an editor moved and
source prompts that a classifier read off a photo, not always rightly.

Reconfiguration meets them, and so does likeness, where another photo of the person who is painted is the source.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...expression import EXPRESSIONS
from ...face_prompt import face_prompt
from ...imr import Imr, KeypointEncoder
from ...keypoints import Keypoints
from ...motion import AS_IS, LIMIT, edit_motion
from ..data.sample import Sample
from ..reconfiguration import ReconfigureBatch, ReconfigureCollator, edited_tokens
from ..stages import ReconfigureStage

Pair = list[Sample]
"""Two photos of one person: the source of edits, and the one to paint."""
_EDITED = 0.5  # share of the people in likeness
_MOVED = 0.5  # share of the targets whose keypoints are the source's, moved
_MISREAD = 0.25  # share of the sources whose prompt names any expression, as the classifier does of many renders


@dataclass(frozen=True, eq=False)
class Edits:
    """rows: [E] of a batch, whose people have edited tokens. batch: E people, with a target each."""

    rows: Tensor
    batch: ReconfigureBatch


class Editor(nn.Module):
    """What trains is ``imr``. The keypoint encoder stays as it is: few faces are too few for batch normalisation."""

    def __init__(self, imr: Imr, keypoint_encoder: KeypointEncoder) -> None:
        super().__init__()
        self.imr = imr
        self._frozen = (keypoint_encoder.requires_grad_(False).eval(),)  # in a tuple, so that it does not count as ours

    def forward(self, edits: Edits) -> Tensor:
        """The tokens of the edits, [E, T, D]."""
        return edited_tokens(self.imr, self._frozen[0], edits.batch)


class EditCollator:
    """Makes edits of pairs."""

    def __init__(self, batches: ReconfigureCollator) -> None:
        self._batches = batches

    def make(self, pairs: list[Pair], shown: Tensor, generator: torch.Generator, device: torch.device) -> Edits | None:
        """Edits of some pairs. shown: [B], whose faces have not been dropped. None where nobody is edited."""
        edited = torch.rand(len(pairs), generator=generator) < _EDITED
        rows = (edited & shown.cpu()).nonzero().flatten()
        if not len(rows):
            return None
        edits = simulate_edits([pairs[row] for row in rows.tolist()], generator)
        return Edits(rows.to(device), self._batches.make(edits, generator, device))


class EditorStage(ReconfigureStage):
    """Reconfiguration of what the nodes ask for."""

    def make_batch(self, raw: list[list[Sample]], generator: torch.Generator, device: torch.device) -> ReconfigureBatch:
        """What ``network`` takes."""
        return super().make_batch(simulate_edits(raw, generator), generator, device)


def simulate_edits(people: list[list[Sample]], generator: torch.Generator) -> list[list[Sample]]:
    """People, each a source and its targets, with what editor and classifier make of some of them."""
    return [_simulate_edits(source, targets, generator) for source, *targets in people]


def _simulate_edits(source: Sample, targets: list[Sample], generator: torch.Generator) -> list[Sample]:
    misread, *moves = torch.rand(1 + len(targets), generator=generator).tolist()
    read = int(torch.randint(len(EXPRESSIONS), (), generator=generator))
    edits = [moved(source, target) if move < _MOVED else target for move, target in zip(moves, targets, strict=True)]
    if misread < _MISREAD:
        source = replace(source, face_prompt=face_prompt(EXPRESSIONS[read], torch.from_numpy(source.pose)))
    return [source, *edits]


def moved(source: Sample, target: Sample) -> Sample:
    """The target with the keypoints that an editor makes of the source's: turned, with the preset of the expression."""
    own = Keypoints(torch.from_numpy(source.keypoints), torch.from_numpy(source.pose))
    pitch, yaw, roll = (target.pose - source.pose).clip(-LIMIT, LIMIT).tolist()
    keypoints = edit_motion(own, target.expression or AS_IS, yaw, pitch, roll)
    return replace(target, keypoints=keypoints.points.numpy())
