"""A classifier of the miniature's pictures, trained on renders of other people: public ones do poorly on these faces.

It takes part in no other stage's losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ...expression import EXPRESSIONS
from ...images import Photo, to_image
from ..config import LoopConfig
from ..data.sample import Sample
from ..inputs import pictures
from ..losses import loss_dict
from ..stages import SampleSource, SampleStage
from ..synthetic.people import CLOTH_COLOURS
from .weights import write_weights

JUDGE_FILE = "judge.safetensors"
SIZE = 128
"""Side of its input pictures, portraits as in the data."""
COLOURS = tuple(CLOTH_COLOURS)
_WIDTHS = (24, 48, 96, 128)
_BLUR = 0.5  # share of the pictures that are blurred a little
_SHIFT, _ZOOM = 0.08, 0.15
_NO_COLOUR = -1  # of a background outdoors
QUESTIONS = {"expression": len(EXPRESSIONS), "clothes": len(COLOURS), "background": len(COLOURS)}
"""Question -> number of answers: EXPRESSIONS, or COLOURS for clothes and background."""


class Judge(nn.Module):
    """Classifies portraits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            layers += [_convolution(before, width, 2), _Residual(width), _Residual(width)]
            before = width
        self.body = nn.Sequential(*layers)
        # The face is in the middle and the rest around it, so position matters.
        self.heads = nn.ModuleDict({name: nn.Linear(before * 16, count) for name, count in QUESTIONS.items()})
        self.drop = nn.Dropout(0.3)

    def forward(self, portraits: Tensor) -> dict[str, Tensor]:
        """portraits: [B, 3, SIZE, SIZE], 0 to 1 -> scores [B, answers] by question."""
        seen = self.drop(F.adaptive_avg_pool2d(self.body(portraits * 2 - 1), 4).flatten(1))
        return {name: head(seen) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """expression: of EXPRESSIONS. clothes, background: of COLOURS."""

    expression: str
    clothes: str
    background: str


def open_judge(file: Path) -> Judge:
    """A trained judge."""
    judge = Judge()
    judge.load_state_dict(load_file(file))
    return judge.eval()


@torch.no_grad()
def classify(judge: Judge, portraits: list[Photo]) -> list[Verdict]:
    """The verdicts on portraits [SIZE, SIZE, 3]."""
    batch = to_image(portraits).movedim(-1, 1)
    answers = {name: scores.argmax(dim=1).tolist() for name, scores in judge(batch).items()}
    return [
        Verdict(EXPRESSIONS[expression], COLOURS[clothes], COLOURS[background])
        for expression, clothes, background in zip(*(answers[name] for name in QUESTIONS), strict=True)
    ]


class Judging(nn.Module):
    """The losses of a batch of labelled portraits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.judge = Judge()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """batch: "portraits" and, by question, the correct answers [B], negative where there is none."""
        scores = self.judge(batch["portraits"])
        losses = {name: F.cross_entropy(scores[name], batch[name], ignore_index=_NO_COLOUR) for name in QUESTIONS}
        return loss_dict(torch.stack(list(losses.values())).sum(), **losses)


class JudgeStage(SampleStage):
    """As the loop runs it."""

    def __init__(self, source: SampleSource, config: LoopConfig) -> None:
        super().__init__(source, config)
        self.network = Judging(config.seed)

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
        """Augmented pictures (shifted, zoomed, mirrored, blurred) with the correct answers."""
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # for dropout
        portraits = pictures(raw).movedim(-1, 1)
        answers = [true_answers(sample) for sample in raw]
        batch = {name: torch.tensor([answer[name] for answer in answers]) for name in QUESTIONS}
        batch["portraits"] = _augmented(portraits, generator)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def save_weights(self, folder: Path) -> None:
        """judge.safetensors."""
        write_weights(self.network.judge.state_dict(), folder / JUDGE_FILE)


def true_answers(sample: Sample) -> dict[str, int]:
    """The correct answers for a synthetic picture, as indices; -1 where there is none."""
    shot, person = sample.labels["shot"], sample.labels["person"]
    outdoors = shot["background"] == "outdoors"
    return {
        "expression": EXPRESSIONS.index(shot["expression"]),
        "clothes": COLOURS.index(person["cloth_colour"]),
        "background": _NO_COLOUR if outdoors else COLOURS.index(shot["background_colour"]),
    }


def _augmented(portraits: Tensor, generator: torch.Generator) -> Tensor:
    count = len(portraits)
    zoom = 1 + _ZOOM * (2 * torch.rand(count, generator=generator) - 1)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = _SHIFT * torch.randn(count, 2, generator=generator)
    where = torch.zeros(count, 2, 3)
    where[:, 0, 0], where[:, 1, 1], where[:, :, 2] = zoom * mirror, zoom, shift
    grid = F.affine_grid(where, [count, 3, SIZE, SIZE], align_corners=False)
    moved = F.grid_sample(portraits, grid, padding_mode="border", align_corners=False)
    blurred = F.interpolate(F.interpolate(moved, scale_factor=0.5, mode="area"), size=SIZE, mode="bilinear")
    soft = (torch.rand(count, 1, 1, 1, generator=generator) < _BLUR) * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.lerp(moved, blurred, soft)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width, 1), _convolution(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU(inplace=True)
    )
