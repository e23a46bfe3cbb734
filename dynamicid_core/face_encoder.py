"""The face encoder: turns an ArcFace embedding, refined by CLIP features of the same face, into identity tokens.

The architecture is that of IP-Adapter FaceID Plus, whose weights load unchanged. ``operations`` is ``torch.nn``, or a
module of the host with the same layers under its memory management.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from .attention import CrossAttention, feed_forward

HEAD_SIZE = 64
FEED_FORWARD_FACTOR = 4


@dataclass(frozen=True)
class FaceEncoderSizes:
    """Sizes fixed by the weights: token_size 768 for SD1.5, 2048 for SDXL; the released model has the defaults."""

    token_size: int
    embedding_size: int = 512
    clip_size: int = 1280
    tokens: int = 4
    depth: int = 4

    @classmethod
    def from_state_dict(cls, weights: Mapping[str, Tensor]) -> "FaceEncoderSizes":
        """Reads the sizes from a face encoder's state dict. Raises KeyError if a needed tensor is missing."""
        token_size, clip_size = weights["perceiver_resampler.proj_in.weight"].shape
        layers = {key.split(".")[2] for key in weights if key.startswith("perceiver_resampler.layers.")}
        return cls(
            token_size=token_size,
            embedding_size=weights["proj.0.weight"].shape[1],
            clip_size=clip_size,
            tokens=weights["proj.2.weight"].shape[0] // token_size,
            depth=len(layers),
        )


class FaceEncoder(nn.Module):
    """Embedding and CLIP features of one face -> identity tokens (paper section 3.1)."""

    def __init__(self, sizes: FaceEncoderSizes, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        hidden = 2 * sizes.embedding_size
        self.sizes = sizes
        self.proj = nn.Sequential(
            operations.Linear(sizes.embedding_size, hidden, **factory_kwargs),
            nn.GELU(),
            operations.Linear(hidden, sizes.token_size * sizes.tokens, **factory_kwargs),
        )
        self.norm = operations.LayerNorm(sizes.token_size, **factory_kwargs)
        self.perceiver_resampler = PerceiverResampler(sizes, operations=operations, **factory_kwargs)

    def forward(self, embedding: Tensor, clip_features: Tensor, shortcut: bool = False, scale: float = 1.0) -> Tensor:
        """Tokens [B, 4, token size].

        embedding: [B, 512], of length 1. clip_features: [B, 257, 1280], CLIP's penultimate hidden states. shortcut:
        add the tokens made from the embedding alone, as IP-Adapter FaceID Plus V2 does; ``scale`` then weights the CLIP
        part. For the tokens of no face, pass a zero embedding and the features of all-zero pixel values.
        """
        from_embedding = self.norm(self.proj(embedding).unflatten(-1, (self.sizes.tokens, self.sizes.token_size)))
        refined = self.perceiver_resampler(from_embedding, clip_features)
        return from_embedding + scale * refined if shortcut else refined


class PerceiverResampler(nn.Module):
    """The tokens of the embedding attend to the CLIP features, in ``depth`` layers."""

    def __init__(self, sizes: FaceEncoderSizes, *, operations: Any, **factory_kwargs: Any) -> None:
        super().__init__()
        size = sizes.token_size
        self.proj_in = operations.Linear(sizes.clip_size, size, **factory_kwargs)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    CrossAttention(size, size // HEAD_SIZE, operations=operations, **factory_kwargs),
                    feed_forward(size, FEED_FORWARD_FACTOR * size, operations=operations, **factory_kwargs),
                ]
            )
            for _ in range(sizes.depth)
        )
        self.proj_out = operations.Linear(size, size, **factory_kwargs)
        self.norm_out = operations.LayerNorm(size, **factory_kwargs)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """tokens: [B, 4, token size]; features: [B, 257, 1280] -> [B, 4, token size]."""
        features = self.proj_in(features)
        for layer in self.layers:
            attention, mlp = cast(nn.ModuleList, layer)
            tokens = tokens + attention(tokens, features)
            tokens = tokens + mlp(tokens)
        return self.norm_out(self.proj_out(tokens))
