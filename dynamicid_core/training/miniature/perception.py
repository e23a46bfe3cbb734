"""What ArcFace sees of a face on its way to the embedding: a painted face should give it what the true one does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...face_analysis import ALIGNED_SIZE
from ...face_packs import open_pack
from ...keypoints import ARCFACE_POINTS
from ..data.shards import read_samples

_LAYERS = ("PRelu_5", "Add_32", "Add_73", "Add_90")
"""Of w600k_mbf, the last ones that see 56, 28, 14 and 7 squares in each direction."""


@dataclass(frozen=True, eq=False)
class ArcFaceOutput:
    """features: per layer [B, C, h, w], of length 1 in C. embeddings: [B, 512], of length 1."""

    features: list[Tensor]
    embeddings: Tensor


class Perception:
    """ArcFace, letting gradients through."""

    def __init__(self, network: nn.Module) -> None:
        """network: frozen, [B, 3, 112, 112] of -1 to 1 -> [B, 512], with the layers of w600k_mbf."""
        self._network = network
        self._captured: dict[str, Tensor] = {}
        for name in _LAYERS:
            network.get_submodule(name).register_forward_hook(self._capture_hook(name))

    def __call__(self, pictures: Tensor, keypoints: Tensor) -> ArcFaceOutput:
        """What it sees of faces. pictures: [B, H, W, 3], 0 to 1. keypoints: [B, 106, 2] in fractions of them."""
        embeddings = self._network(_aligned(pictures, keypoints) * 2 - 1)
        features = [F.normalize(self._captured.pop(name), dim=1) for name in _LAYERS]
        return ArcFaceOutput(features, F.normalize(embeddings, dim=-1))

    def _capture_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def capture(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            self._captured[name] = output

        return capture


def feature_errors(painted: ArcFaceOutput, true: ArcFaceOutput) -> Tensor:
    """How far features are apart, [B]: 0 for the same ones, 2 where they have nothing in common."""
    apart = [
        (mine - other).square().sum(1).mean((1, 2)) for mine, other in zip(painted.features, true.features, strict=True)
    ]
    return torch.stack(apart).mean(0)


def embedding_errors(painted: ArcFaceOutput, true: ArcFaceOutput) -> Tensor:
    """How far embeddings are apart, [B]: 0 for the same ones, 1 for those with nothing in common."""
    return 1 - (painted.embeddings * true.embeddings).sum(1)


def similarity_errors(painted: ArcFaceOutput, true: ArcFaceOutput, identities: Tensor) -> Tensor:
    """How far the cosines of faces with identities [N, 512], of length 1, are from those of the true faces, [B]: mean
    squares.

    A soft or dark face is like nobody at all, so that even its own person seems far. What all people share then counts
    most here, since all N see it.
    """
    return ((painted.embeddings - true.embeddings) @ identities.T).square().mean(1)


def known_identities(folder: Path) -> Tensor:
    """Identities of everybody in a data set, [N, 512], of length 1, by a photo of each."""
    first: dict[str, Tensor] = {}
    for sample in read_samples(folder):
        first.setdefault(sample.identity, torch.from_numpy(sample.embedding).float())
    return torch.stack(list(first.values()))


def open_perception(pack: Path, device: torch.device) -> Perception:
    """The recognition model of a pack. Raises InputError if it is another one, or the package onnx2torch is missing."""
    try:
        import onnx
        from onnx2torch import convert
    except ImportError as error:
        raise InputError(
            "To let gradients through InsightFace's recognition model, the package onnx2torch is needed. "
            "Run: pip install -r requirements-training.txt"
        ) from error
    file = open_pack(pack, "CPU").recognition_file
    network: nn.Module = convert(onnx.load(file))
    if missing := set(_LAYERS) - {name for name, _ in network.named_modules()}:
        raise InputError(
            f"{file} is not w600k_mbf: it has no layer {', '.join(sorted(missing))}. Give InsightFace's pack buffalo_s."
        )
    return Perception(network.eval().requires_grad_(False).to(device))


def _aligned(pictures: Tensor, keypoints: Tensor) -> Tensor:
    """Faces [B, 3, 112, 112] as ArcFace wants them: where InsightFace's ``norm_crop`` puts them."""
    from insightface.utils.face_align import estimate_norm

    height, width = pictures.shape[1:3]
    landmarks = (keypoints[:, ARCFACE_POINTS] * torch.tensor((width, height), device=keypoints.device)).cpu().numpy()
    to_picture = [np.linalg.inv(np.vstack((estimate_norm(one, ALIGNED_SIZE), (0, 0, 1))))[:2] for one in landmarks]
    steps = torch.arange(float(ALIGNED_SIZE))
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack((across, down, torch.ones_like(down)), dim=-1)
    where = places @ torch.tensor(np.stack(to_picture), dtype=torch.float32).transpose(1, 2).unsqueeze(1)
    grid = (2 * where + 1) / torch.tensor((width, height)) - 1
    return F.grid_sample(pictures.movedim(-1, 1), grid.to(pictures.device), align_corners=False)
