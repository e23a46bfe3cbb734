"""Whether the tensors of a weight file are all there, and fit each other."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .adapter import describe_family, projection_sizes
from .face_encoder import FaceEncoder, FaceEncoderSizes
from .imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes


def faults(modules: Mapping[str, dict[str, Tensor]]) -> list[str]:
    """What is wrong with the modules of a part, see ``Checkpoint``, each in a user's words; none if it is complete."""
    found = [fault for module, weights in modules.items() for fault in _FAULTS[module](weights)]
    return found or (_halves_faults(modules) if "saa" in modules else [])


def _halves_faults(modules: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    made = modules["face_encoder"]["norm.weight"].shape[0]
    taken = {token_size for _, token_size in projection_sizes(modules["saa"]).values()}
    return [] if taken == {made} else [f"its face encoder makes tokens of {made}, its SAA part takes those of {taken}"]


def _network_faults(
    name: str, build: Callable[[dict[str, Tensor]], nn.Module], weights: dict[str, Tensor]
) -> list[str]:
    """What keeps the weights from fitting the network that ``build`` makes for their sizes."""
    try:
        network = build(weights)
    except KeyError as error:
        return [f"{name} lacks {error.args[0]}"]
    except (ValueError, IndexError, ZeroDivisionError) as error:
        return [f"{name} has sizes that do not go together ({error})"]
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    found = [f"{name} lacks {key}" for key in sorted(expected.keys() - weights.keys())]
    found += [f"{name} has an unknown {key}" for key in sorted(weights.keys() - expected.keys())]
    return found + [
        f"{name}'s {key} is {list(weights[key].shape)} instead of {list(expected[key])}"
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key]
    ]


def _face_encoder_faults(weights: dict[str, Tensor]) -> list[str]:
    return _network_faults(
        "the face encoder", lambda given: FaceEncoder(FaceEncoderSizes.of(given), device="meta"), weights
    )


def _imr_faults(weights: dict[str, Tensor]) -> list[str]:
    return _network_faults("the IMR", lambda given: Imr(ImrSizes.of(given), device="meta"), weights)


def _keypoint_encoder_faults(weights: dict[str, Tensor]) -> list[str]:
    return _network_faults(
        "the keypoint encoder",
        lambda given: KeypointEncoder(KeypointEncoderSizes.of(given), device="meta"),
        weights,
    )


def _saa_faults(weights: dict[str, Tensor]) -> list[str]:
    try:
        sizes = projection_sizes(weights)
    except ValueError:  # a name without a number, or a tensor that is no matrix
        return ["the SAA part has layers that are no matrices with a number"]
    missing = [f"{i}.to_v_ip.weight" for i in sizes if f"{i}.to_v_ip.weight" not in weights]
    missing += [f"{i}.to_k_ip.weight" for i in range(1, 2 * len(sizes), 2) if i not in sizes]
    for key in weights:
        for half, other in ((".down.", ".up."), (".up.", ".down.")):
            if half in key and key.replace(half, other) not in weights:
                missing.append(key.replace(half, other))
    found = [f"the SAA part lacks {key}" for key in missing]
    token_sizes = {token_size for _, token_size in sizes.values()}
    if len(token_sizes) > 1:
        found.append(f"the SAA part has layers of {describe_family(max(token_sizes), len(sizes))} and of other models")
    return found or _misfits(weights)


def _misfits(weights: dict[str, Tensor]) -> list[str]:
    """Pairs of the SAA part that do not go together: keys with values, and both halves of low-rank updates."""
    misfits = []
    for key, one in weights.items():
        if ".to_k_ip." in key:
            other = weights[key.replace(".to_k_ip.", ".to_v_ip.")]
            fits = one.shape == other.shape
        elif ".down." in key:
            other = weights[key.replace(".down.", ".up.")]
            fits = one.ndim == other.ndim == 2 and other.shape[1] == one.shape[0]
        else:
            continue
        if not fits:
            misfits.append(f"the SAA part's {key} is {list(one.shape)}, which does not fit {list(other.shape)}")
    return misfits


_FAULTS: dict[str, Callable[[dict[str, Tensor]], list[str]]] = {
    "face_encoder": _face_encoder_faults,
    "saa": _saa_faults,
    "imr": _imr_faults,
    "keypoint_encoder": _keypoint_encoder_faults,
}
