"""Layers shared by the face encoder and the IMR.

``operations`` is ``torch.nn``, or a module of the host with the same layers under its memory management.
State-dict names are those of the released files.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Tokens attend to a context and to themselves."""

    def __init__(self, size: int, heads: int, *, operations: Any, **factory_kwargs: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(size, **factory_kwargs)
        self.norm2 = operations.LayerNorm(size, **factory_kwargs)
        self.to_q = operations.Linear(size, size, bias=False, **factory_kwargs)
        self.to_kv = operations.Linear(size, 2 * size, bias=False, **factory_kwargs)
        self.to_out = operations.Linear(size, size, bias=False, **factory_kwargs)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """tokens: [B, T, size]; context: [B, L, size] -> [B, T, size], without the residual."""
        tokens = self.norm2(tokens)
        both = torch.cat((self.norm1(context), tokens), dim=1)
        return self.to_out(attend(self.to_q(tokens), self.to_kv(both), self.heads))


class SelfAttention(nn.Module):
    """Tokens attend to themselves."""

    def __init__(self, size: int, heads: int, *, operations: Any, **factory_kwargs: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(size, **factory_kwargs)
        self.to_q = operations.Linear(size, size, bias=False, **factory_kwargs)
        self.to_kv = operations.Linear(size, 2 * size, bias=False, **factory_kwargs)
        self.to_out = operations.Linear(size, size, bias=False, **factory_kwargs)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T, size] -> the same shape, without the residual."""
        tokens = self.norm1(tokens)
        return self.to_out(attend(self.to_q(tokens), self.to_kv(tokens), self.heads))


def feed_forward(size: int, hidden: int, *, operations: Any, **factory_kwargs: Any) -> nn.Sequential:
    """LayerNorm, then an MLP with one hidden layer and GELU, without biases."""
    return nn.Sequential(
        operations.LayerNorm(size, **factory_kwargs),
        operations.Linear(size, hidden, bias=False, **factory_kwargs),
        nn.GELU(),
        operations.Linear(hidden, size, bias=False, **factory_kwargs),
    )


def attend(queries: Tensor, keys_values: Tensor, heads: int) -> Tensor:
    """queries: [B, T, size]; keys_values: [B, L, 2 * size], the keys first -> [B, T, size]."""
    keys, values = keys_values.chunk(2, dim=-1)
    q, k, v = (split_heads(part, heads) for part in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def split_heads(joined: Tensor, heads: int) -> Tensor:
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)
