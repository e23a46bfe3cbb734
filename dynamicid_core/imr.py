"""The identity-motion reconfigurator (IMR, paper section 3.3): replaces the motion in a face's tokens.

``operations`` is ``torch.nn``, or a module of the host with the same layers under its memory management.
State-dict names are those of the released files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention, feed_forward

RASTER_SIZE = 96
"""Side of the keypoint encoder's input picture."""

# (channels in widths, kernel, stride, padding) of each convolution; 96 -> 96, 48, 24, 12, 6, 3 -> 1. Where the channels
# stay the same within a stage, the convolution has a residual.
_STAGES = (
    ((1, 7, 1, 3),),
    ((2, 3, 2, 1), (2, 3, 1, 1), (2, 3, 1, 1)),
    ((4, 3, 2, 1), (4, 3, 1, 1), (4, 3, 1, 1), (4, 3, 1, 1)),
    ((8, 3, 2, 1), (8, 3, 1, 1), (8, 3, 1, 1)),
    ((16, 3, 2, 1), (16, 3, 1, 1), (16, 3, 1, 1)),
    ((32, 3, 2, 1), (32, 3, 1, 1)),
    ((32, 3, 1, 0),),
)


@dataclass(frozen=True)
class ImrSizes:
    """Sizes fixed by the weights; the released IMR has token_size 768, feature_size 1536, size 1024, depth 1 or 4."""

    token_size: int
    feature_size: int
    size: int
    queries: int
    feed_forward: int
    disentangle_depth: int
    entangle_depth: int

    @property
    def heads(self) -> int:
        """Of every attention, which no tensor shows: 64 channels each as in the released IMR, but at least four."""
        return max(4, self.size // 64)

    @classmethod
    def from_state_dict(cls, weights: Mapping[str, Tensor]) -> "ImrSizes":
        """Reads the sizes from an IMR's state dict. Raises KeyError if a needed tensor is missing, ValueError if
        the sizes are not those of a network.
        """
        size, token_size = weights["proj_in.weight"].shape
        sizes = cls(
            token_size=token_size,
            feature_size=weights["feature_fusion.0.weight"].shape[0],
            size=size,
            queries=weights["feature_fusion.4.weight"].shape[0] // size,
            feed_forward=weights["disentangleNet.0.2.1.weight"].shape[0],
            disentangle_depth=_depth(weights, "disentangleNet"),
            entangle_depth=_depth(weights, "entangleNet"),
        )
        if size % sizes.heads:
            raise ValueError(f"{size} channels cannot be split into {sizes.heads} attention heads")
        return sizes


class Imr(nn.Module):
    """Replaces the source motion in identity tokens with a target motion."""

    def __init__(self, sizes: ImrSizes, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        size = sizes.size
        self.sizes = sizes
        self.feature_fusion = nn.Sequential(
            operations.LayerNorm(sizes.feature_size, **factory_kwargs),
            operations.Linear(sizes.feature_size, size, **factory_kwargs),
            nn.GELU(),
            operations.LayerNorm(size, **factory_kwargs),
            operations.Linear(size, size * sizes.queries, **factory_kwargs),
            nn.GELU(),
        )
        self.norm_in = operations.LayerNorm(sizes.token_size, **factory_kwargs)
        self.proj_in = operations.Linear(sizes.token_size, size, **factory_kwargs)
        self.disentangleNet = _net(sizes.disentangle_depth, sizes, operations, factory_kwargs)
        self.entangleNet = _net(sizes.entangle_depth, sizes, operations, factory_kwargs)
        self.norm_out = operations.LayerNorm(size, **factory_kwargs)
        self.proj_out = operations.Linear(size, sizes.token_size, **factory_kwargs)

    def forward(
        self,
        tokens: Tensor,
        source_keypoints: Tensor,
        target_keypoints: Tensor,
        source_text: Tensor,
        target_text: Tensor,
    ) -> Tensor:
        """Edited tokens [targets, T, token size] of one face.

        tokens: [1, T, token size]. source_keypoints [1, K] and source_text [1, X]: the motion that the tokens show, as
        features of the keypoint encoder and pooled text of the face prompt. target_keypoints [targets, K], target_text
        [targets, X]: the motions to put in, one result each.
        """
        source = self._motion(source_keypoints, source_text)
        target = self._motion(target_keypoints, target_text)
        latents = self.proj_in(self.norm_in(tokens)).expand(len(target), -1, -1)
        latents = _run(self.disentangleNet, latents, source.expand(len(target), -1, -1))
        latents = _run(self.entangleNet, latents, target)
        return self.proj_out(self.norm_out(latents))

    def _motion(self, keypoints: Tensor, text: Tensor) -> Tensor:
        fused = self.feature_fusion(torch.cat((keypoints, text), dim=-1))
        return fused.unflatten(-1, (self.sizes.queries, self.sizes.size))


@dataclass(frozen=True)
class KeypointEncoderSizes:
    """Sizes fixed by the weights; the released keypoint encoder has 768 features and width 16 (of its first layer)."""

    features: int = 768
    width: int = 16

    @classmethod
    def from_state_dict(cls, weights: Mapping[str, Tensor]) -> "KeypointEncoderSizes":
        """Reads the sizes from a state dict. Raises KeyError if its first or last convolution is missing."""
        first, last = "blocks.0.0.conv_block.0.weight", f"blocks.{len(_STAGES) - 1}.1.conv_block.0.weight"
        return cls(weights[last].shape[0], weights[first].shape[0])

    @property
    def stages(self) -> list[list[tuple[int, int, int, int]]]:
        """Channels, kernel, stride and padding of each convolution."""
        scaled = [
            [(widths * self.width, kernel, stride, padding) for widths, kernel, stride, padding in stage]
            for stage in _STAGES
        ]
        return [*scaled[:-1], [*scaled[-1], (self.features, 1, 1, 0)]]


class KeypointEncoder(nn.Module):
    """A picture of 106 keypoints -> motion features.

    Batch normalisation is always torch's own, whatever ``operations`` is, and stays in float32: the host's layers cast
    their weights when they run, torch's do not.
    """

    def __init__(
        self,
        sizes: KeypointEncoderSizes | None = None,
        *,
        operations: Any = nn,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.sizes = sizes or KeypointEncoderSizes()
        factory_kwargs = {"dtype": dtype, "device": device}
        blocks, before = [], 1
        for stage in self.sizes.stages:
            layers = []
            for channels, kernel, stride, padding in stage:
                layers.append(_ConvBlock(before, channels, kernel, stride, padding, operations, factory_kwargs))
                before = channels
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, raster: Tensor) -> Tensor:
        """raster: [B, 1, 96, 96], -1 and 1 -> [B, features], never negative. Call it in evaluation mode: batch
        normalisation then uses its running statistics.
        """
        for block in self.blocks:
            raster = block(raster)
        return raster.flatten(1)


class _BatchNorm(nn.BatchNorm2d):
    """A host short of memory does not move this layer, as it has no such layer of its own: the tensors follow x."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.weight.device == x.device:
            return super().forward(x)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (getattr(self, name).to(x.device) for name in names)
        return F.batch_norm(x, mean, variance, weight, bias, eps=self.eps)


class _ConvBlock(nn.Module):
    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int,
        padding: int,
        operations: Any,
        factory_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            operations.Conv2d(before, after, kernel, stride, padding, **factory_kwargs),
            _BatchNorm(after, device=factory_kwargs["device"]),
        )
        self.residual = before == after and stride == 1 and padding > 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_block(x)
        return F.relu(out + x if self.residual else out)


def _net(depth: int, sizes: ImrSizes, operations: Any, factory_kwargs: dict[str, Any]) -> nn.ModuleList:
    size, heads = sizes.size, sizes.heads
    return nn.ModuleList(
        nn.ModuleList(
            [
                CrossAttention(size, heads, operations=operations, **factory_kwargs),
                SelfAttention(size, heads, operations=operations, **factory_kwargs),
                feed_forward(size, sizes.feed_forward, operations=operations, **factory_kwargs),
            ]
        )
        for _ in range(depth)
    )


def _run(net: nn.ModuleList, tokens: Tensor, motion: Tensor) -> Tensor:
    for layer in net:
        with_motion, among_themselves, mlp = cast(nn.ModuleList, layer)
        tokens = tokens + with_motion(tokens, motion)
        tokens = tokens + among_themselves(tokens)
        tokens = tokens + mlp(tokens)
    return tokens


def _depth(weights: Mapping[str, Tensor], net: str) -> int:
    layers = {key.split(".")[1] for key in weights if key.startswith(f"{net}.")}
    if not layers:
        raise KeyError(f"{net}.0")
    return len(layers)
