"""Weight files: reads every known format, writes one.

Reads the released DynamicID files (torch pickles, only through torch's restricted loader) under either naming of their
outer keys, their safetensors form, and IP-Adapter FaceID Plus and Plus V2, which have the same layers. The tensors
decide what a file is, never its name. Writes one safetensors file per part, with its sizes as metadata.
"""

import json
import logging
import pickle
import pickletools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import completeness
from .errors import InputError
from .face_encoder import FaceEncoderSizes
from .files import atomic_write
from .imr import ImrSizes, KeypointEncoderSizes

ADAPTER, IMR, KEYPOINT_ENCODER = "adapter", "imr", "keypoint_encoder"
ADAPTER_FILE, IMR_FILE, KEYPOINT_ENCODER_FILE = (f"{part}.safetensors" for part in (ADAPTER, IMR, KEYPOINT_ENCODER))
"""File names of the parts, as training writes them and the miniature has them."""
PART_NAMES = {ADAPTER: "an adapter (face encoder and SAA)", IMR: "an IMR", KEYPOINT_ENCODER: "a keypoint encoder"}
FORMAT_VERSION = "1"
_FORMAT = "dynamicid-{}"

_log = logging.getLogger(__name__)
# A tensor that only this module has, under its name in the module.
_SIGNATURE_TENSORS = {
    "face_encoder": "perceiver_resampler.proj_in.weight",
    "saa": "1.to_k_ip.weight",
    IMR: "disentangleNet.0.0.to_q.weight",
    KEYPOINT_ENCODER: "blocks.0.0.conv_block.0.weight",
}
_MODULES = {ADAPTER: ("face_encoder", "saa"), IMR: (IMR,), KEYPOINT_ENCODER: (KEYPOINT_ENCODER,)}
_RELEASED_PREFIX = {"face_encoder": "proj_module.", "saa": "SAA_module.", IMR: "", KEYPOINT_ENCODER: ""}
_DYNAMICID_ONLY_PREFIXES = ("proj_module.", "SAA_module.", "adapter_modules.")
_DEEPEST = 4  # mappings below the outermost one of a pickle; the released files have one


@dataclass(frozen=True)
class Variant:
    """How an adapter's face encoder was trained, which its tensors do not show.

    shortcut: whether the tokens made from the embedding alone are added to the result. embedding_channel_order: the
    colour channel order of the photos given to ArcFace. crop: the part of them given to CLIP. recognition: the ArcFace
    model of the files that their authors published, see ``Checkpoint``.
    """

    name: str
    shortcut: bool
    embedding_channel_order: str
    crop: str
    recognition: str = "w600k_r50"


# The released DynamicID feeds RGB pictures to InsightFace, which expects BGR, so its encoder learned swapped channels.
# Its detector sees them swapped, too; ours does not, which detects better and moves landmarks by less than a pixel
# (cosine of the embeddings 0.996).
DYNAMICID = Variant("DynamicID", shortcut=False, embedding_channel_order="rgb", crop="portrait")
FACEID_PLUS = Variant("IP-Adapter FaceID Plus", shortcut=False, embedding_channel_order="bgr", crop="aligned")
FACEID_PLUS_V2 = Variant("IP-Adapter FaceID Plus V2", shortcut=True, embedding_channel_order="bgr", crop="aligned")
VARIANTS = {variant.name: variant for variant in (DYNAMICID, FACEID_PLUS, FACEID_PLUS_V2)}


@dataclass(frozen=True)
class Checkpoint:
    """One part of DynamicID, as read from a file.

    part: ADAPTER, IMR or KEYPOINT_ENCODER. modules: state dicts under the released names; an adapter has "face_encoder"
    and "saa", the other parts one named like the part. variant: for an adapter, how it was trained. recognition: the
    name of the InsightFace model whose embeddings it was trained on, "" if unknown.
    """

    part: str
    modules: dict[str, dict[str, Tensor]]
    variant: Variant = DYNAMICID
    recognition: str = ""

    @property
    def family(self) -> str:
        """The base model of an adapter or an IMR: "sd15", "sdxl", or "token size N" for others."""
        sizes = (
            ImrSizes.from_state_dict(self.modules[IMR])
            if self.part == IMR
            else FaceEncoderSizes.from_state_dict(self.modules["face_encoder"])
        )
        return base_model_name(sizes.token_size)


def base_model_name(token_size: int) -> str:
    """The name in files for a base model with this text token size."""
    return {768: "sd15", 2048: "sdxl"}.get(token_size, f"token size {token_size}")


def read_checkpoint(
    path: str | Path, part: str, variant: Variant | None = None, fallback: Variant = DYNAMICID
) -> Checkpoint:
    """Reads the file at ``path``, which must be of the given part.

    variant: the user's choice for an adapter; by default it is read from the file. Files under IP-Adapter's own key
    names may be DynamicID or FaceID Plus, which have the same tensors; they are taken for ``fallback``. Raises
    InputError for a file that is damaged, unsafe, incomplete or of another kind.
    """
    path = Path(path)
    tensors, metadata = _read_tensors(path)
    found = _find_part(tensors)
    if found is None:
        raise InputError(f"{path.name} is {_describe_unknown(tensors)}; {PART_NAMES[part]} is needed here. ({path})")
    if found != part:
        raise InputError(
            f"{path.name} is {PART_NAMES[found]}; {PART_NAMES[part]} is needed here. Choose it at the input for that "
            f"part, and another file here. ({path})"
        )
    modules = {module: _module_tensors(tensors, module) for module in _MODULES[part]}
    _check_complete(part, modules, path)
    how = variant or _detect_variant(tensors, metadata, fallback)
    ours = metadata.get("format") == _FORMAT.format(part)  # other safetensors files have "pt" there
    published = "" if ours or part != ADAPTER else how.recognition
    checkpoint = Checkpoint(part, modules, how, metadata.get("recognition", published))
    if part == ADAPTER:
        _log.info("%s read as %s for %s", path.name, checkpoint.variant.name, checkpoint.family)
    return checkpoint


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Writes one part as safetensors, bit for bit, under the released names and with the metadata of ``_metadata``.

    The write is atomic.
    """
    path = Path(path)
    tensors = {
        _RELEASED_PREFIX[module] + key: tensor.contiguous()
        for module, state in checkpoint.modules.items()
        for key, tensor in state.items()
    }
    with atomic_write(path) as unfinished:
        save_file(tensors, unfinished, metadata=_metadata(checkpoint))


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    metadata = {"format": _FORMAT.format(checkpoint.part), "version": FORMAT_VERSION}
    if checkpoint.part == KEYPOINT_ENCODER:
        sizes = KeypointEncoderSizes.from_state_dict(checkpoint.modules[KEYPOINT_ENCODER])
        return {**metadata, "sizes": json.dumps(vars(sizes))}
    metadata["base_model"] = checkpoint.family
    if checkpoint.part == IMR:
        return {**metadata, "sizes": json.dumps(vars(ImrSizes.from_state_dict(checkpoint.modules[IMR])))}
    if checkpoint.recognition:
        metadata["recognition"] = checkpoint.recognition
    return {
        **metadata,
        "variant": checkpoint.variant.name,
        "embedding_channel_order": checkpoint.variant.embedding_channel_order,
        "sizes": json.dumps(vars(FaceEncoderSizes.from_state_dict(checkpoint.modules["face_encoder"]))),
    }


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise InputError(
            f"There is no file {path}. Choose another one, or put it there and press R to refresh the lists."
        )
    with path.open("rb") as file:
        start = file.read(10)
    # A safetensors file begins with the length of its JSON header, a torch file with a zip or pickle signature.
    if start[8:9] == b"{":
        return _read_safetensors(path)
    return _flatten(_read_pickle(path)), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if _find_part(keys) is None:  # no need to read gigabytes of another kind to name it
                return dict.fromkeys(keys, torch.empty(0)), {}
            # Copies: the originals are memory-mapped, and the file may be overwritten.
            return {key: file.get_tensor(key).clone() for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _contains_code(path, str(error)):
            raise _damaged(path) from error
        raise InputError(
            f"{path.name} holds objects other than tensors, which could run code on this machine, so it was not "
            f"loaded. Get the file from its authors again, as safetensors if available. ({path})"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path) from error


def _contains_code(path: Path, refusal: str) -> bool:
    """Whether torch refused a class or function, or an opcode that fetches one (as in newer pickles)."""
    if "GLOBAL" in refusal:
        return True
    try:
        return any("GLOBAL" in operation.name for operation, _, _ in pickletools.genops(path.read_bytes()))
    except ValueError:  # not a pickle, or a truncated one
        return False


def _damaged(path: Path) -> InputError:
    size = path.stat().st_size
    return InputError(
        f"{path.name} ({size:,} bytes) is damaged or not a weight file: it could not be read to the end. Usually a "
        f"download was cut off; download it again. ({path})"
    )


def _flatten(tree: Any, prefix: str = "", depth: int = 0, seen: set[int] | None = None) -> dict[str, Tensor]:
    """{"proj_module": {"norm.weight": …}} -> {"proj_module.norm.weight": …}; what is no tensor (a step count) is left
    out.

    Each mapping is read once, down to _DEEPEST: a small pickle can nest without end, or hold itself.
    """
    flat: dict[str, Tensor] = {}
    seen = set() if seen is None else seen
    if isinstance(tree, Mapping) and depth <= _DEEPEST and id(tree) not in seen:
        seen.add(id(tree))
        for key, value in tree.items():
            if isinstance(value, Tensor):
                flat[f"{prefix}{key}"] = value
            else:
                flat |= _flatten(value, f"{prefix}{key}.", depth + 1, seen)
    return flat


def _find_prefix(tensors: Iterable[str], module: str) -> str | None:
    """The prefix of a module's tensors in a file with these tensor names; None if the file does not have the module."""
    signature = _SIGNATURE_TENSORS[module]
    for key in tensors:
        if key == signature or key.endswith("." + signature):
            return key.removesuffix(signature)
    return None


def _find_part(tensors: Iterable[str]) -> str | None:
    for part, modules in _MODULES.items():
        if all(_find_prefix(tensors, module) is not None for module in modules):
            return part
    return None


def _module_tensors(tensors: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    prefix = _find_prefix(tensors, module)
    assert prefix is not None  # _find_part has seen it
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _detect_variant(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], fallback: Variant) -> Variant:
    if metadata.get("variant") in VARIANTS:
        return VARIANTS[metadata["variant"]]
    if any(key.startswith(_DYNAMICID_ONLY_PREFIXES) for key in tensors):
        return DYNAMICID
    if _find_part(tensors) == ADAPTER and _module_tensors(tensors, "face_encoder")["norm.weight"].shape[0] == 2048:
        return FACEID_PLUS_V2  # the only adapter of this kind published for SDXL
    return fallback


def _describe_unknown(tensors: Mapping[str, Tensor]) -> str:
    keys = list(tensors)
    if _find_prefix(tensors, "saa") is not None or any(key.startswith(("image_proj.", "ip_adapter.")) for key in keys):
        return "an IP-Adapter without the FaceID Plus face encoder, or only half of an adapter"
    if any(key.startswith("lora_") or ".lora_" in key or ".lora." in key for key in keys):
        return "a LoRA (it belongs in models/loras and is loaded by Load LoRA)"
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return "a whole checkpoint (it belongs in models/checkpoints and is loaded by Load Checkpoint)"
    if any("vision_model." in key for key in keys):
        return "a CLIP vision model (it belongs in models/clip_vision and is loaded by Load CLIP Vision)"
    return f"not a DynamicID file (its first tensors: {', '.join(keys[:3]) or 'none'})"


def _check_complete(part: str, modules: Mapping[str, dict[str, Tensor]], path: Path) -> None:
    faults = completeness.find_faults(modules)
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"{path.name} is {PART_NAMES[part]}, but not a complete one: {'; '.join(faults[:3])}{more}. "
            f"Download it again, or convert it again from the original. ({path})"
        )
