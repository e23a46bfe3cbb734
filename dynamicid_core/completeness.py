"""Checks that a weight file has all its tensors, and that they fit each other."""

import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn, strided

from .adapter import LORA_TARGETS, describe_family, projection_sizes, update_sources
from .face_encoder import FaceEncoder, FaceEncoderSizes
from .imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes

_NAMES = {
    "face_encoder": "the face encoder",
    "saa": "the SAA part",
    "imr": "the IMR",
    "keypoint_encoder": "the keypoint encoder",
}
_NETWORKS: dict[str, Callable[[dict[str, Tensor]], nn.Module]] = {
    "face_encoder": lambda weights: FaceEncoder(FaceEncoderSizes.from_state_dict(weights), device="meta"),
    "imr": lambda weights: Imr(ImrSizes.from_state_dict(weights), device="meta"),
    "keypoint_encoder": lambda weights: KeypointEncoder(KeypointEncoderSizes.from_state_dict(weights), device="meta"),
}
_SAA_NAME = re.compile(r"(\d{1,4})\.to_")


def find_faults(modules: Mapping[str, dict[str, Tensor]]) -> list[str]:
    """What is wrong with the modules of a part (see ``Checkpoint``), as parts of messages; empty if it is complete."""
    found = [fault for module, weights in modules.items() for fault in _module_faults(module, weights)]
    return found or (_token_size_faults(modules) if "saa" in modules else [])


def _module_faults(module: str, weights: dict[str, Tensor]) -> list[str]:
    name = _NAMES[module]
    empty = [key for key, tensor in weights.items() if tensor.is_meta or tensor.layout != strided]
    if empty:
        return [f"{name}'s {key} has no plain values" for key in empty]
    found = _network_faults(name, _NETWORKS[module], weights) if module in _NETWORKS else _saa_faults(weights)
    return found + [
        f"{name}'s {key} holds {tensor.dtype} instead of floating-point numbers"
        for key, tensor in weights.items()
        if not (tensor.is_floating_point() or key.endswith(".num_batches_tracked"))
    ]


def _token_size_faults(modules: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    made = modules["face_encoder"]["norm.weight"].shape[0]
    taken = {token_size for _, token_size in projection_sizes(modules["saa"]).values()}
    return (
        []
        if taken == {made}
        else [f"its face encoder makes tokens of size {made}, its SAA part takes tokens of size {taken}"]
    )


def _network_faults(
    name: str, build: Callable[[dict[str, Tensor]], nn.Module], weights: dict[str, Tensor]
) -> list[str]:
    """Where the weights do not fit the network that ``build`` makes for their sizes."""
    try:
        network = build(weights)
    except KeyError as error:
        return [f"{name} lacks {error.args[0]}"]
    except (ValueError, IndexError, ZeroDivisionError) as error:
        return [f"{name} has sizes that do not fit together ({error})"]
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    found = [f"{name} lacks {key}" for key in sorted(expected.keys() - weights.keys())]
    found += [f"{name} has an unknown {key}" for key in sorted(weights.keys() - expected.keys())]
    return found + [
        f"{name}'s {key} is {list(weights[key].shape)} instead of {list(expected[key])}"
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key]
    ]


def _saa_faults(weights: dict[str, Tensor]) -> list[str]:
    expected = _saa_names(weights)
    found = [f"the SAA part lacks {key}" for key in expected if key not in weights]
    found += [f"the SAA part has an unknown {key}" for key in sorted(weights.keys() - set(expected))]
    if found:
        return found
    try:
        sizes = projection_sizes(weights)
    except ValueError:
        return ["the SAA part has layers that are not matrices"]
    token_sizes = {token_size for _, token_size in sizes.values()}
    if len(token_sizes) > 1:
        return [f"the SAA part has layers of {describe_family(max(token_sizes), len(sizes))} and of other models"]
    return [fault for index in sizes for fault in _layer_mismatches(weights, index, *sizes[index])]


def _saa_names(weights: Collection[str]) -> list[str]:
    """The tensors of a whole SAA part with these layers. A projection has low-rank updates in all layers or in none."""
    numbers = [int(match[1]) for match in map(_SAA_NAME.match, weights) if match]
    cross = {number | 1 for number in numbers}  # the self-attention before it is in the same block
    updated = [f"{name}_lora" for name in LORA_TARGETS if any(f".{name}_lora." in key for key in weights)]
    updates = [f"{update}.{half}" for update in updated for half in ("down", "up")]
    names = []
    for index in sorted(cross | set(range(1, 2 * len(cross), 2))):
        names += [f"{index}.to_k_ip.weight", f"{index}.to_v_ip.weight"]
        names += [f"{layer}.{update}.weight" for layer in (index - 1, index) for update in updates]
    return names


def _layer_mismatches(weights: Mapping[str, Tensor], index: int, channels: int, token_size: int) -> list[str]:
    """Shape mismatches in a cross-attention layer and the self-attention before it: of keys and values, and of low-rank
    updates and their projections.
    """
    keys, values = f"{index}.to_k_ip.weight", f"{index}.to_v_ip.weight"
    found = [_mismatch(weights, keys, values)] if weights[keys].shape != weights[values].shape else []
    for layer, context in ((index - 1, channels), (index, token_size)):
        for name, source in update_sources(channels, context).items():
            if f"{layer}.{name}_lora.down.weight" in weights:
                found += _update_mismatches(weights, f"{layer}.{name}_lora", source, channels)
    return found


def _update_mismatches(weights: Mapping[str, Tensor], update: str, source: int, channels: int) -> list[str]:
    down, up = f"{update}.down.weight", f"{update}.up.weight"
    if not (weights[down].ndim == weights[up].ndim == 2 and weights[up].shape[1] == weights[down].shape[0]):
        return [_mismatch(weights, down, up)]
    rank = weights[down].shape[0]
    return [
        f"the SAA part's {key} is {list(weights[key].shape)} instead of {list(expected)}"
        for key, expected in ((down, (rank, source)), (up, (channels, rank)))
        if weights[key].shape != expected
    ]


def _mismatch(weights: Mapping[str, Tensor], one: str, other: str) -> str:
    return f"the SAA part's {one} is {list(weights[one].shape)}, which does not fit {list(weights[other].shape)}"
