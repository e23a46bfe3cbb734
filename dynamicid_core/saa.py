"""Semantic-activated attention (SAA, paper section 3.2), as functions on the tensors of one layer.

Shapes: B batch rows, N queries, C channels with the heads joined, H heads, d = C / H, T identity tokens of all people.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import split_heads
from .errors import InputError, check_range

FLAT_SPREAD = 1e-6
"""Relevance maps with a smaller spread carry no information; their gate is 0 (the released code divides 0 by 0)."""

KEY_BLOCK_SIZE = 16

MAX_SETTINGS = {
    "weight": 3.0, "threshold": 1.0, "layout_boost": 10.0, "layout_end": 1.0, "start_percent": 1.0, "end_percent": 1.0,
}  # fmt: skip
"""The largest value of each setting; the smallest is 0."""


@dataclass(frozen=True)
class SaaSettings:
    """How strongly, where and when the identity acts. The defaults are the released model's.

    weight: multiplies the identity's contribution. threshold: gates below it become 0 (paper 0, released model 0.3).
    gate: False switches off the gate and the regions, as in the ablation without SAA. layout_boost: added to the gate
    inside regions for the first ``layout_end`` of the schedule. start_percent, end_percent: the part of the schedule in
    which the identity acts at all. Fractions of the schedule are turned into sigmas by the host.
    """

    weight: float = 1.0
    threshold: float = 0.3
    gate: bool = True
    layout_boost: float = 2.0
    layout_end: float = 0.24
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        for name, most in MAX_SETTINGS.items():
            check_range(name, getattr(self, name), 0, most)
        if self.start_percent > self.end_percent:
            raise InputError(
                f"The faces would end before they start: start_percent is {self.start_percent:g}, end_percent "
                f"{self.end_percent:g}. Make end_percent the larger one."
            )


@dataclass(frozen=True)
class IdentityTokens:
    """The people's tokens projected for one layer; constant during a sampling run.

    keys, values: [B, H, T, d]. key_sum: [B, C, 1] float32, the keys summed over tokens, divided by sqrt(d). padding:
    mask [1, 1, 1, T], 0 for real tokens and -inf for padding; None without padding.
    """

    keys: Tensor
    values: Tensor
    key_sum: Tensor
    padding: Tensor | None = None


@dataclass(frozen=True)
class Shares:
    """How soft masks weaken people, for n people.

    of_people: [V, N, n], the share of each person's contribution that each query takes, above 0. mask: [V, 1, N, T],
    ``Layout.mask`` with the logarithms of these shares in place of the zeros. owners: [T, n], 1 where a token belongs
    to a person. All in the attention's dtype.
    """

    of_people: Tensor
    mask: Tensor
    owners: Tensor


@dataclass(frozen=True)
class Layout:
    """The people's regions on one layer's grid; V is 1, or B if the rows of a batch show different parts.

    mask: [V, 1, N, T] in the attention's dtype, 0 where a query may attend to a token, else -inf; None if all may.
    gate_scale, gate_offset: [V, N, 1] float32, the layout boost as ``gate * scale + offset``; None once the boost has
    ended. shares: for soft masks; None if every query takes all of each person's contribution.
    """

    mask: Tensor | None = None
    gate_scale: Tensor | None = None
    gate_offset: Tensor | None = None
    shares: Shares | None = None


def padded_count(tokens: int) -> int:
    """The number of tokens with padding.

    Attention kernels work on 16 keys at a time: masked keys cost less than a remainder (benchmarks/README.md).
    """
    return math.ceil(tokens / KEY_BLOCK_SIZE) * KEY_BLOCK_SIZE


def project_tokens(
    keys: Tensor, values: Tensor, heads: int, dtype: torch.dtype, key_scale: Tensor | None = None, pad: bool = False
) -> IdentityTokens:
    """Splits projected keys and values [B, T, C] into heads and sums the keys for the gate.

    key_scale: [T], multiplies the attention logits of each token but not the gate (the released identity mix). The sum
    is taken in float32 before the cast to ``dtype``, so that half precision does not change the gate. pad: whether to
    pad the tokens, see ``padded_count``.
    """
    head_size = keys.shape[-1] // heads
    key_sum = keys.float().sum(dim=1).unsqueeze(-1) * head_size**-0.5
    if key_scale is not None:
        keys = keys * key_scale[:, None]
    count = keys.shape[1]
    filler = padded_count(count) - count if pad else 0
    padding = None
    if filler:
        keys, values = (F.pad(part, (0, 0, 0, filler)) for part in (keys, values))
        padding = F.pad(torch.zeros(1, 1, 1, count, dtype=dtype, device=keys.device), (0, filler), value=-math.inf)
    return IdentityTokens(split_heads(keys, heads).to(dtype), split_heads(values, heads).to(dtype), key_sum, padding)


def relevance_gate(query: Tensor, key_sum: Tensor, threshold: float) -> Tensor:
    """How relevant each query is to the given people (paper eq. 4): minmax(Q K^T J), [B, N, 1] float32 in [0, 1].

    query: [B, N, C] after to_q. key_sum: [B, C, 1]. Summing the scores over heads and tokens is one dot product with
    the summed keys, so the score tensor is never materialised. Gates below ``threshold`` become 0; a flat map gives 0
    everywhere.
    """
    relevance = torch.bmm(query.float(), key_sum)
    low, high = relevance.aminmax(dim=1, keepdim=True)
    spread = F.threshold(high - low, FLAT_SPREAD, math.inf)  # dividing by infinity gives the 0 of a flat map
    return F.threshold((relevance - low) / spread, _just_below(threshold), 0.0)


def identity_attention(query: Tensor, identity: IdentityTokens, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V (see ``Layout``), [B, N, C] in the identity's dtype."""
    return _attend(query, identity, identity.values, mask).reshape(query.shape)


def person_gates(
    query: Tensor, identity: IdentityTokens, threshold: float, layout: Layout | None, counts: Sequence[int]
) -> Tensor:
    """How much each query takes of each person, [B, people, N] float32 in [0, 1]: for inspection, not for sampling.

    The gate, without the layout boost, times the person's part of the attention, averaged over heads. counts: the
    number of tokens of each person. ``SaaSettings.gate`` does not count: the gate is on here.
    """
    gate = relevance_gate(query, identity.key_sum, threshold).mT
    queries = split_heads(query, identity.keys.shape[1]).float()
    scores = queries @ identity.keys.float().mT * queries.shape[-1] ** -0.5
    mask = identity.padding if layout is None or layout.mask is None else layout.mask
    if mask is not None:
        scores = scores + mask.float()
    probabilities = scores.softmax(dim=-1).mean(dim=1)[..., : sum(counts)]
    parts = probabilities.split(list(counts), dim=-1)  # [B, N, tokens of a person] each
    taken = torch.stack([part.sum(dim=-1) for part in parts], dim=1)
    if layout is not None and layout.shares is not None:
        taken = taken * layout.shares.of_people.mT.float()
    return gate * taken


def semantic_activated_attention(
    text: Tensor,
    query: Tensor,
    identity: IdentityTokens,
    settings: SaaSettings,
    layout: Layout | None = None,
    *,
    overwrite_text: bool = False,
) -> Tensor:
    """text + gate * identity attention (paper eq. 5), [B, N, C] in text's dtype.

    text: the layer's own attention result, before to_out. query: [B, N, C] after to_q. The weight of the identity is
    already in its values. With ``settings.gate`` False every query takes all of it, and regions have no effect, as in
    the released code, nor have the weights of a mix unless they are in the keys (``project_tokens``). overwrite_text:
    write the result into ``text``, which saves a tensor of that size.
    """
    if not settings.gate:
        return text + identity_attention(query, identity).to(text.dtype)
    gate = relevance_gate(query, identity.key_sum, settings.threshold)
    if layout is not None and layout.gate_scale is not None and layout.gate_offset is not None:
        gate = torch.addcmul(layout.gate_offset, gate, layout.gate_scale)
    attended = _attend_in_layout(query, identity, layout).to(text.dtype)
    if text.device.type == "mps":
        gate = gate.to(text.dtype)  # Metal's operations need one dtype
    return (text if overwrite_text else text.clone()).addcmul_(
        gate, attended
    )  # the product is taken in the gate's float32


def _attend_in_layout(query: Tensor, identity: IdentityTokens, layout: Layout | None) -> Tensor:
    if layout is None or layout.shares is None:
        return identity_attention(query, identity, None if layout is None else layout.mask)
    shares = layout.shares
    people = shares.owners.shape[-1]
    if people == 1:
        return identity_attention(query, identity, layout.mask) * shares.of_people
    # Two attentions for any number of people. Shares in the logits weaken each person's tokens, but softmax
    # renormalises; the scale lost by that is the attention to each person times their share, summed.
    weakened = _attend(query, identity, identity.values, shares.mask)
    owners = F.pad(shares.owners, (0, max(0, identity.values.shape[-1] - people)))  # kernels need one head size
    of_people = _attend(query, identity, owners.expand(*identity.keys.shape[:2], -1, -1), layout.mask)
    left = (of_people[..., :people] * shares.of_people.unsqueeze(2)).sum(dim=-1, keepdim=True)
    return (weakened * left).reshape(query.shape)


def _attend(query: Tensor, identity: IdentityTokens, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with other values, [B, N, H, head size of the values]."""
    mask = identity.padding if mask is None else mask
    queries = split_heads(query, identity.keys.shape[1]).to(identity.keys.dtype)
    return F.scaled_dot_product_attention(queries, identity.keys, values, attn_mask=mask).transpose(1, 2)


def attention_dtype(query: Tensor) -> torch.dtype:
    """The dtype of the attention: the query's own, but float32 on MPS, where half-precision attention overflows."""
    return torch.float32 if query.device.type == "mps" else query.dtype


def _just_below(threshold: float) -> float:
    """The float32 before ``threshold``: torch's threshold keeps what is greater, ours keeps what is equal too."""
    return float(np.nextafter(np.float32(threshold), np.float32(-math.inf)))
