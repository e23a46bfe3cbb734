"""An adapter for a UNet: its attention layers, their identity projections and their low-rank updates.

Files number the layers in the order down, up, middle, as diffusers lists a UNet's processors: even numbers are
self-attention, odd ones cross-attention. ComfyUI names the same layers by their position (see ``layer_map``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from .errors import InputError

_SECTIONS = {"input_blocks": "input", "output_blocks": "output", "middle_block": "middle"}  # in file order
_QUERY_WEIGHT = re.compile(
    r"(?P<path>(?P<section>input_blocks|output_blocks|middle_block)\.(?P<number>\d+)\.(?:\d+\.)?"
    r"transformer_blocks\.(?P<transformer>\d+)\.(?P<kind>attn[12]))\.to_q\.weight"
)
LORA_TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
"""Projections with low-rank updates: name in the file -> name in the UNet."""

_FAMILIES = {(768, 16): "SD1.5", (1024, 16): "SD2", (2048, 70): "SDXL"}  # by context size and cross-attention layers


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a UNet.

    index: its number in adapter files. path: its name in the UNet's state dict. block: ComfyUI's key for patches,
    (section, block number, transformer index). channels: size of its queries. context: size of the
    tokens it attends to.
    """

    index: int
    path: str
    block: tuple[str, int, int]
    channels: int
    context: int

    @property
    def is_cross(self) -> bool:
        """Whether this is a cross-attention layer, which attends to the text."""
        return self.index % 2 == 1


def attention_layers(network: nn.Module) -> list[AttentionLayer]:
    """The attention layers of a UNet; see ``layer_map``."""
    return layer_map({name: weight.shape for name, weight in network.named_parameters()})


def layer_map(shapes: Mapping[str, Iterable[int]]) -> list[AttentionLayer]:
    """The attention layers of a UNet of the Stable Diffusion family, in file order, from its tensors' names and shapes.

    SD1.5 has 32 (16 cross-attention), SDXL 140. A model without such layers gives an empty list.
    """
    order = list(_SECTIONS)
    found = [match for match in map(_QUERY_WEIGHT.fullmatch, shapes) if match]
    found.sort(key=lambda m: (order.index(m["section"]), int(m["number"]), int(m["transformer"]), m["kind"]))
    layers = []
    for index, match in enumerate(found):
        channels, context = shapes[match["path"] + ".to_k.weight"]
        number = 0 if match["section"] == "middle_block" else int(match["number"])
        block = (_SECTIONS[match["section"]], number, int(match["transformer"]))
        layers.append(AttentionLayer(index, match["path"], block, channels, context))
    return layers


def describe_family(context: int, cross_layers: int) -> str:
    """The model family for messages, from its context size and number of cross-attention layers."""
    sizes = f"token size {context}, {cross_layers} cross-attention layers"
    family = _FAMILIES.get((context, cross_layers))
    return f"{family} ({sizes})" if family else f"a model with {sizes}"


class IdentityProjections(nn.Module):
    """to_k and to_v for the identity tokens of every cross-attention layer, under the released names."""

    def __init__(self, sizes: Mapping[int, tuple[int, int]], *, operations: Any = nn, **factory_kwargs: Any) -> None:
        """sizes: layer index -> (channels, token size)."""
        super().__init__()
        self.sizes = dict(sizes)
        self.layers = nn.ModuleDict(
            {
                str(index): nn.ModuleDict(
                    {
                        "to_k_ip": operations.Linear(token_size, channels, bias=False, **factory_kwargs),
                        "to_v_ip": operations.Linear(token_size, channels, bias=False, **factory_kwargs),
                    }
                )
                for index, (channels, token_size) in sizes.items()
            }
        )

    def forward(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: [B, T, token size] -> keys and values of layer ``index``, each [B, T, channels]."""
        layer = cast(nn.ModuleDict, self.layers[str(index)])
        return layer["to_k_ip"](tokens), layer["to_v_ip"](tokens)


def projection_sizes(saa: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Layer index -> (channels, token size), read from the SAA part of a file."""
    sizes = {}
    for key, tensor in saa.items():
        if key.endswith(".to_k_ip.weight"):
            channels, token_size = tensor.shape
            sizes[int(key.split(".")[0])] = (channels, token_size)
    return dict(sorted(sizes.items()))


def projection_weights(saa: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``IdentityProjections`` in the SAA part of a file, under the module's own names."""
    return {f"layers.{key}": tensor for key, tensor in saa.items() if key.split(".")[1] in ("to_k_ip", "to_v_ip")}


def update_weights(saa: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the low-rank updates in the SAA part of a file, under their own names."""
    return {key: tensor for key, tensor in saa.items() if "_lora." in key}


def update_sources(channels: int, context: int) -> dict[str, int]:
    """Projection with a low-rank update -> its input size, in an attention layer. See ``AttentionLayer``."""
    return {"to_q": channels, "to_k": context, "to_v": context, "to_out": channels}


def low_rank_updates(
    weights: Mapping[str, Tensor], layers: Iterable[AttentionLayer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """UNet weight name -> (up [out, rank], down [rank, in]); the update of the weight is up @ down, without a scale.

    weights: see ``update_weights``. Layers without an update are left out.
    """
    updates = {}
    for layer in layers:
        for in_file, in_unet in LORA_TARGETS.items():
            name = f"{layer.index}.{in_file}_lora"
            if f"{name}.up.weight" in weights:
                pair = (weights[f"{name}.up.weight"], weights[f"{name}.down.weight"])
                updates[f"{layer.path}.{in_unet}.weight"] = pair
    return updates


def check_fit(sizes: Mapping[int, tuple[int, int]], layers: Sequence[AttentionLayer]) -> None:
    """Raises InputError unless an adapter with these projection sizes fits a UNet with these layers."""
    needed = {layer.index: (layer.channels, layer.context) for layer in layers if layer.is_cross}
    if sizes == needed:
        return
    if not needed:
        raise InputError(
            "This model has no cross-attention layers of a Stable Diffusion UNet. DynamicID works on SD1.5 models "
            "(and on SDXL with an SDXL adapter): load such a checkpoint."
        )
    made_for = describe_family(next(iter(sizes.values()))[1], len(sizes))
    given = describe_family(next(iter(needed.values()))[1], len(needed))
    if made_for == given:
        wrong = next(i for i in sorted(needed.keys() | sizes.keys()) if sizes.get(i) != needed.get(i))
        made_for += f" whose layer {wrong} has sizes {sizes.get(wrong)}, while this one's has {needed.get(wrong)}"
    raise InputError(
        f"The adapter and the model do not fit: the adapter was made for {made_for}, the model is {given}. "
        "Load the adapter for this model, or a model for this adapter."
    )
