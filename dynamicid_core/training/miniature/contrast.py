"""The miniature's text and image encoders, trained to match pictures and captions (CLIP, arXiv 2103.00020)."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...comfy_host.miniature import (
    IMAGE,
    IMAGE_FILE,
    TEXT,
    TEXT_FILE,
    build_image_encoder,
    build_text_encoder,
    packed_text_weights,
)
from ...images import clip_input
from ...keypoints import KEYPOINT_COUNT
from ..config import LoopConfig
from ..data.sample import Sample
from ..losses import loss_dict
from ..stages import SampleSource, SampleStage
from .weights import write_weights

_LOCAL = 1.0  # weight of the loss on keypoints and pose
_PENULTIMATE = -2  # the layer whose features the face encoder takes
_VOCABULARY_CAPTIONS = 4000  # from which the vocabulary is collected
_DEGREES = 30.0
_END = 49407  # the token that ends a text


@dataclass(frozen=True, eq=False)
class ContrastBatch:
    """pixels: [B, 3, S, S], normalised. tokens: [B, 77]. keypoints: [B, 212]. pose: [B, 3], in units of 30 degrees."""

    pixels: Tensor
    tokens: Tensor
    keypoints: Tensor
    pose: Tensor


class Contrast(nn.Module):
    """The losses of a batch.

    The face encoder takes the image encoder's patch features from its last layer but one; a linear layer on their mean,
    discarded afterwards, must predict the face's keypoints and pose from them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.text, self.image = _text_network(), _image_network()
        self.sharpness = nn.Parameter(torch.tensor(2.5))
        self.local = nn.Linear(IMAGE["hidden_size"], 2 * KEYPOINT_COUNT + 3)

    def forward(self, batch: ContrastBatch) -> dict[str, Tensor]:
        """Losses by name, and "found": how often a caption is nearest to its picture."""
        pictures, features = self.look(batch.pixels)
        texts = self.text(batch.tokens).pooler_output
        alike = F.normalize(texts, dim=-1) @ F.normalize(pictures, dim=-1).T * self.sharpness.exp().clamp(max=100)
        own = torch.arange(len(alike), device=alike.device)
        contrast = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        local = F.l1_loss(self.local(features.mean(dim=1)), torch.cat((batch.keypoints, batch.pose), dim=1))
        return loss_dict(
            contrast + _LOCAL * local, contrast=contrast, local=local, found=(alike.argmax(dim=1) == own).float().mean()
        )

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D] and the features of the patches [B, patches, size]."""
        output = self.image(pixel_values=pixels, output_hidden_states=True)
        return output.image_embeds, output.hidden_states[_PENULTIMATE][:, 1:]


class ContrastStage(SampleStage):
    """As the loop runs it."""

    def __init__(self, source: SampleSource, config: LoopConfig) -> None:
        super().__init__(source, config)
        self._clip, self._clip_vision = build_text_encoder(), build_image_encoder()
        self.network = Contrast(config.seed)

    def make_batch(self, raw: list[Sample], generator: torch.Generator, device: torch.device) -> ContrastBatch:
        """What the network takes."""
        size, mean, std = (getattr(self._clip_vision, name) for name in ("image_size", "image_mean", "image_std"))
        pixels = clip_input([sample.picture for sample in raw], size, mean, std)
        tokens = torch.tensor([self._tokens(sample.caption) for sample in raw])
        keypoints = torch.from_numpy(np.stack([sample.keypoints for sample in raw])).float().flatten(1) * 2 - 1
        pose = torch.from_numpy(np.stack([sample.pose for sample in raw])).float() / _DEGREES
        return ContrastBatch(pixels.to(device), tokens.to(device), keypoints.to(device), pose.to(device))

    def save_weights(self, folder: Path) -> None:
        """text_encoder.safetensors and image_encoder.safetensors."""
        samples = islice(self._source.samples(0, 1), _VOCABULARY_CAPTIONS)
        words = torch.tensor(sorted({token for sample in samples for token in self._tokens(sample.caption)}))
        write_weights(packed_text_weights(self.network.text.state_dict(), words), folder / TEXT_FILE)
        write_weights(self.network.image.state_dict(), folder / IMAGE_FILE)

    def _tokens(self, caption: str) -> list[int]:
        """The first 77 tokens of a caption."""
        return [int(token) for token, *_ in next(iter(self._clip.tokenize(caption).values()))[0]][:77]


def _text_network() -> Any:
    """transformers' text encoder, under ComfyUI's names; ComfyUI's own layers overwrite what gradients need."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(**TEXT, eos_token_id=_END, bos_token_id=_END - 1, projection_dim=TEXT["hidden_size"])
    )


def _image_network() -> Any:
    """transformers' image encoder, likewise."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{k: v for k, v in IMAGE.items() if k != "model_type"}))
