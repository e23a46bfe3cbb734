"""The adapter for training: the very layers that the nodes run, with trainable parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import saa
from ..adapter import (
    LORA_TARGETS,
    AttentionLayer,
    IdentityProjections,
    check_fit,
    projection_sizes,
    projection_weights,
    update_sources,
    update_weights,
)
from ..checkpoint import ADAPTER, Checkpoint, Variant
from ..errors import InputError
from ..face_encoder import FaceEncoder, FaceEncoderSizes
from ..imr import Imr

Layouts = Callable[[int, int], saa.Layout | None]


class LowRankUpdates(nn.Module):
    """up @ down for every projection of every attention layer, under the released names."""

    def __init__(self, layers: Sequence[AttentionLayer], rank: int) -> None:
        super().__init__()
        self._paths = {layer.index: layer.path for layer in layers}
        self.layers = nn.ModuleDict({str(layer.index): _updates(layer, rank) for layer in layers})

    def add_to(self, unet: nn.Module) -> list[RemovableHandle]:
        """Makes the UNet's projections act as with the updates merged, until the handles are removed."""
        handles = []
        for index, path in self._paths.items():
            layer = cast(nn.ModuleDict, self.layers[str(index)])
            for in_file, in_unet in LORA_TARGETS.items():
                projection = unet.get_submodule(f"{path}.{in_unet}")
                handles.append(projection.register_forward_hook(_update_hook(layer[f"{in_file}_lora"])))
        return handles


class TrainableAdapter(nn.Module):
    """Face encoder, identity projections and low-rank updates of one UNet."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        encoder: FaceEncoderSizes,
        rank: int,
        variant: Variant,
        recognition: str = "",
    ) -> None:
        """recognition: see ``Checkpoint``."""
        super().__init__()
        self.variant, self.recognition = variant, recognition
        self.layers = list(layers)
        self.face_encoder = FaceEncoder(encoder)
        sizes = {layer.index: (layer.channels, layer.context) for layer in layers if layer.is_cross}
        self.projections = IdentityProjections(sizes)
        self.updates = LowRankUpdates(layers, rank)

    @classmethod
    def of(cls, checkpoint: Checkpoint, layers: Sequence[AttentionLayer]) -> "TrainableAdapter":
        """A trainable adapter in float32. Raises InputError for a checkpoint without low-rank updates of all
        projections, and for one of another UNet.
        """
        encoder, tensors = checkpoint.modules["face_encoder"], checkpoint.modules["saa"]
        check_fit(projection_sizes(tensors), layers)
        ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith("_lora.down.weight")}
        if len(ranks) != 1:
            found = f"updates of the ranks {', '.join(map(str, sorted(ranks)))}" if ranks else "none"
            raise InputError(f"Training can start from adapters with low-rank updates of one rank; this has {found}.")
        adapter = cls(
            layers, FaceEncoderSizes.from_state_dict(encoder), ranks.pop(), checkpoint.variant, checkpoint.recognition
        )
        adapter.face_encoder.load_state_dict(encoder)
        adapter.projections.load_state_dict(projection_weights(tensors))
        updates = {f"layers.{key}": tensor for key, tensor in update_weights(tensors).items()}
        missing = sorted({key.split(".")[2] for key in adapter.updates.state_dict().keys() - updates.keys()})
        if missing:
            raise InputError(
                f"Training can start from adapters with low-rank updates of all projections; this has none of "
                f"{', '.join(name.removesuffix('_lora') for name in missing)}."
            )
        adapter.updates.load_state_dict(updates)
        return adapter

    def init_from_text(self, unet: Mapping[str, Tensor]) -> None:
        """Initialises identity keys and values with those of the text (paper section 3.4). unet: its state dict."""
        paths = {layer.index: layer.path for layer in self.layers}
        with torch.no_grad():
            for index in projection_sizes(self.saa_weights()):
                layer = cast(nn.ModuleDict, self.projections.layers[str(index)])
                for name in ("to_k", "to_v"):
                    linear = cast(nn.Linear, layer[f"{name}_ip"])
                    linear.weight.copy_(unet[f"{paths[index]}.{name}.weight"])

    def init_embedding_layer(self) -> None:
        """Initialises the face encoder's first layer so that its outputs have standard deviation 1.

        An embedding has length 1, so each of its values is small: with the usual weights the biases would drown it, and
        all tokens would be nearly the same.
        """
        first = cast(nn.Linear, self.face_encoder.proj[0])
        nn.init.normal_(first.weight)
        nn.init.zeros_(first.bias)

    def init_silent(self) -> None:
        """Initialises identity values with zero, so that training need not first remove what tokens add: a small model
        does that by making them the same for everybody.
        """
        for name, parameter in self.projections.named_parameters():
            if name.endswith("to_v_ip.weight"):
                nn.init.zeros_(parameter)

    def tokens(self, embeddings: Tensor, clip_features: Tensor) -> Tensor:
        """Identity tokens [B, T, D] of embeddings [B, 512] and CLIP features [B, patches, size]."""
        return self.face_encoder(embeddings, clip_features, shortcut=self.variant.shortcut)

    def patches(
        self,
        tokens: Tensor,
        settings: saa.SaaSettings,
        text_attention: Callable[..., Tensor],
        layout: Layouts | None = None,
    ) -> dict[Any, Callable[..., Tensor]]:
        """The replacement of each cross-attention layer, text and identity, under ComfyUI's key.

        tokens: [B, T, D], one person per row. text_attention: the host's own, see ``identity_patch``. layout: where the
        people are, on a grid of given rows and columns.
        """
        return {
            layer.block: self._attention(layer, tokens, settings, text_attention, layout)
            for layer in self.layers
            if layer.is_cross
        }

    def checkpoint(self) -> Checkpoint:
        """The adapter in the loader's own format."""
        encoder = {key: tensor.detach().cpu().clone() for key, tensor in self.face_encoder.state_dict().items()}
        return Checkpoint(ADAPTER, {"face_encoder": encoder, "saa": self.saa_weights()}, self.variant, self.recognition)

    def saa_weights(self) -> dict[str, Tensor]:
        """Projections and updates under the released names."""
        both = {**self.projections.state_dict(), **self.updates.state_dict()}
        return {key.removeprefix("layers."): tensor.detach().cpu().clone() for key, tensor in both.items()}

    def _attention(
        self,
        layer: AttentionLayer,
        tokens: Tensor,
        settings: saa.SaaSettings,
        text_attention: Callable[..., Tensor],
        layout: Layouts | None,
    ) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            keys, values = self.projections(layer.index, tokens)
            identity = saa.project_tokens(keys, values, extra_options["n_heads"], q.dtype)
            placed = None if layout is None else layout(*extra_options["activations_shape"][-2:])
            text = text_attention(q, k, v, extra_options)
            # Autocast would compute the gate in bfloat16, too.
            exact = nullcontext() if q.dtype == torch.float32 else torch.autocast(q.device.type, enabled=False)
            with exact:
                return saa.semantic_activated_attention(text, q, identity, settings, placed)

        return attend


@torch.no_grad()
def init_as_identity(imr: Imr) -> None:
    """Initialises an IMR so that it leaves tokens unchanged (tokens of mean 0 and variance 1, as the face encoder
    returns), and training only has to learn what an edit changes.

    Only approximately when the IMR has no more channels than the tokens.
    """
    size, token_size = imr.sizes.size, imr.sizes.token_size
    rank = min(size - 1, token_size)
    # Columns orthogonal to each other and to a vector of ones, which normalisation removes.
    directions = torch.linalg.qr(torch.cat((torch.ones(size, 1), torch.randn(size, rank)), dim=1))[0][:, 1:]
    for linear, weight in ((imr.proj_in, directions), (imr.proj_out, directions.T * (token_size / size) ** 0.5)):
        nn.init.zeros_(linear.weight)
        linear.weight[: weight.shape[0], : weight.shape[1]] = weight
        nn.init.zeros_(linear.bias)
    for layer in (*imr.disentangleNet, *imr.entangleNet):
        with_motion, among_themselves, mlp = cast(nn.ModuleList, layer)
        for last in (with_motion.to_out, among_themselves.to_out, cast(nn.Sequential, mlp)[-1]):
            nn.init.zeros_(cast(nn.Linear, last).weight)


@torch.no_grad()
def token_spread(tokens: Tensor, shown: Tensor) -> Tensor:
    """How much tokens [B, T, D] differ from person to person, as a standard deviation: near 0 when the face encoder
    says the same of everybody. shown: [B], whose faces have not been dropped; NaN for fewer than two.
    """
    tokens = tokens[shown]
    if len(tokens) < 2:
        return tokens.new_tensor(math.nan)
    return tokens.std(dim=0, unbiased=False).mean()


def _updates(layer: AttentionLayer, rank: int) -> nn.ModuleDict:
    sources = update_sources(layer.channels, layer.context)
    return nn.ModuleDict({f"{name}_lora": _update(source, rank, layer.channels) for name, source in sources.items()})


def _update(source: int, rank: int, channels: int) -> nn.ModuleDict:
    down, up = nn.Linear(source, rank, bias=False), nn.Linear(rank, channels, bias=False)
    nn.init.normal_(down.weight, std=1 / rank)
    nn.init.zeros_(up.weight)  # a new adapter leaves the UNet unchanged
    return nn.ModuleDict({"down": down, "up": up})


def _update_hook(update: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    pair = cast(nn.ModuleDict, update)
    down, up = cast(nn.Linear, pair["down"]), cast(nn.Linear, pair["up"])

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(inputs[0], down.weight.to(output.dtype)), up.weight.to(output.dtype))

    return add
