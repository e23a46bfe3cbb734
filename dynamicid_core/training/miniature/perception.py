"""Perceptual losses through ArcFace: a painted face should have the features and embedding of the true one."""

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
"""The last layers of w600k_mbf with feature maps of 56, 28, 14 and 7 cells in each direction."""


@dataclass(frozen=True, eq=False)
class ArcFaceOutput:
    """features: per layer [B, C, h, w], of length 1 in C. embeddings: [B, 512], of length 1."""

    features: list[Tensor]
    embeddings: Tensor


class Perception:
    """ArcFace with gradients."""

    def __init__(self, network: nn.Module) -> None:
        """network: frozen, [B, 3, 112, 112] of -1 to 1 -> [B, 512], with the layers of w600k_mbf."""
        self._network = network
        self._captured: dict[str, Tensor] = {}
        for name in _LAYERS:
            network.get_submodule(name).register_forward_hook(self._capture_hook(name))

    def __call__(self, pictures: Tensor, keypoints: Tensor) -> ArcFaceOutput:
        """Its output for faces. pictures: [B, H, W, 3], 0 to 1. keypoints: [B, 106, 2] in fractions of them."""
        embeddings = self._network(_aligned(pictures, keypoints) * 2 - 1)
        features = [F.normalize(self._captured.pop(name), dim=1) for name in _LAYERS]
        return ArcFaceOutput(features, F.normalize(embeddings, dim=-1))

    def _capture_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def capture(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            self._captured[name] = output

        return capture


def feature_errors(painted: ArcFaceOutput, true: ArcFaceOutput) -> Tensor:
    """The distance of features, [B]: 0 for equal ones, 2 for orthogonal ones."""
    distances = [
        (mine - other).square().sum(1).mean((1, 2)) for mine, other in zip(painted.features, true.features, strict=True)
    ]
    return torch.stack(distances).mean(0)


def embedding_errors(painted: ArcFaceOutput, true: ArcFaceOutput) -> Tensor:
    """1 - cosine of embeddings, [B]."""
    return 1 - (painted.embeddings * true.embeddings).sum(1)


def similarity_errors(painted: ArcFaceOutput, true: ArcFaceOutput, identities: Tensor) -> Tensor:
    """The mean squared difference, [B], between the cosines of painted and of true faces with identities [N, 512], of
    length 1.

    A soft or dark face is similar to nobody, not even to its own person. This loss then restores above all what is
    common to all people, since it shows in all N cosines.
    """
    return ((painted.embeddings - true.embeddings) @ identities.T).square().mean(1)


def known_identities(folder: Path) -> Tensor:
    """Identities of all people in a data set, [N, 512], of length 1, by a photo of each."""
    first: dict[str, Tensor] = {}
    for sample in read_samples(folder):
        first.setdefault(sample.identity, torch.from_numpy(sample.embedding).float())
    return torch.stack(list(first.values()))


def open_perception(pack: Path, device: torch.device) -> Perception:
    """The recognition model of a pack. Raises InputError if it is not w600k_mbf, or without the package onnx2torch."""
    try:
        import onnx
        from onnx2torch import convert
    except ImportError as error:
        raise InputError(
            "Gradients through InsightFace's recognition model need the package onnx2torch. "
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
    """Faces [B, 3, 112, 112] aligned for ArcFace, as by InsightFace's ``norm_crop``."""
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
