"""Tokens that the IMR edits, for the last training of the miniature: another photo of the same person is the source.

By then the IMR knows photos that were measured. The nodes ask for more: keypoints that an editor has moved, and source
prompts that a classifier has read off a photo, not always rightly.
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
from ..reconfiguration import ReconfigureBatch, ReconfigureBatches, edited_tokens

Pair = list[Sample]
"""Two photos of one person: the source of edits, and the one to paint."""
_EDITED = 0.5  # share of the people
_MOVED = 0.5  # share of the edits whose target keypoints are the source's, moved
_MISREAD = 0.25  # share of the edits whose source prompt names any expression, as the classifier does of many renders


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


class EditBatches:
    """Makes edits of pairs."""

    def __init__(self, batches: ReconfigureBatches) -> None:
        self._batches = batches

    def make(self, pairs: list[Pair], shown: Tensor, chance: torch.Generator, device: torch.device) -> Edits | None:
        """Edits of some pairs. shown: [B], whose faces have not been dropped. None where nobody is edited."""
        draws = torch.rand(3, len(pairs), generator=chance)
        expressions = torch.randint(len(EXPRESSIONS), (len(pairs),), generator=chance).tolist()
        rows = ((draws[0] < _EDITED) & shown.cpu()).nonzero().flatten()
        if not len(rows):
            return None
        edits = []
        for row in rows.tolist():
            source, target = pairs[row]
            if draws[1, row] < _MOVED:
                target = moved(source, target)
            if draws[2, row] < _MISREAD:
                read = face_prompt(EXPRESSIONS[expressions[row]], torch.from_numpy(source.pose))
                source = replace(source, face_prompt=read)
            edits.append([source, target])
        return Edits(rows.to(device), self._batches.make(edits, chance, device))


def moved(source: Sample, target: Sample) -> Sample:
    """The target with the keypoints that an editor makes of the source's: turned, with the preset of the expression."""
    own = Keypoints(torch.from_numpy(source.keypoints), torch.from_numpy(source.pose))
    pitch, yaw, roll = (target.pose - source.pose).clip(-LIMIT, LIMIT).tolist()
    keypoints = edit_motion(own, target.expression or AS_IS, yaw, pitch, roll)
    return replace(target, keypoints=keypoints.points.numpy())
