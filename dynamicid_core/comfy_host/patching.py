"""Applies an adapter to a ComfyUI model and its conditioning."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import comfy.float
import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from .. import adapter, saa
from ..errors import InputError, check_range
from ..face import Face, Placement
from .identity_patch import KEY, IdentityPatch
from .loading import DynamicID
from .rows import NEGATIVE, POSITIVE, Application, Row, RowRoles, mark

try:
    from comfy.utils import string_to_seed
except ImportError:  # older hosts
    from comfy.model_patcher import string_to_seed

_log = logging.getLogger(__name__)

Conditioning = list[list[Any]]
MAX_LORA_STRENGTH = 2.0


def apply_dynamicid(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    dynamicid: DynamicID,
    placements: Sequence[Placement],
    settings: saa.SaaSettings,
    lora_strength: float = 1.0,
) -> tuple[ModelPatcher, Conditioning, Conditioning]:
    """The model with SAA and the low-rank updates, and the conditioning that marks the rows with faces.

    The given model and conditioning are not changed. With weight 0 or nobody to place, they are returned unchanged.
    Raises InputError if adapter, model and faces do not fit each other. lora_strength: up to MAX_LORA_STRENGTH.
    """
    check_range("lora_strength", lora_strength, 0, MAX_LORA_STRENGTH)
    placements = [placement for placement in placements if placement.weight != 0]
    if settings.weight == 0 or not placements:
        return model, positive, negative
    with _without_object_patches(model):
        network = getattr(model.model, "diffusion_model", None)
        layers = [] if network is None else adapter.attention_layers(network)
        adapter.check_fit(dynamicid.projections.model.sizes, layers)
        for placement in placements:
            _check_face(placement.face, dynamicid)
        patched = model.clone()
        add_low_rank_updates(patched, adapter.low_rank_updates(dynamicid.updates, layers), lora_strength)
    key = f"{KEY}{uuid.uuid4().hex}"  # unique to this application, so that several stack
    application = Application()
    patch = IdentityPatch(key, application, dynamicid.projections.model, layers, placements, settings)
    patched.set_additional_models(key, [dynamicid.projections])
    # Compiled code sees the keys of wrappers: a new one would make it compile again.
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.around_sampling)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch.around_model)
    return (
        patched,
        mark_conditioning(positive, key, RowRoles((Row(POSITIVE),), application)),
        mark_conditioning(negative, key, RowRoles((Row(NEGATIVE),), application)),
    )


@contextmanager
def _without_object_patches(model: ModelPatcher) -> Iterator[None]:
    """Restores the model as loaded from its file, inside the context.

    The host leaves the object patches of the last sampling in it. One from torch.compile gives weights other names.
    """
    originals = model.object_patches_backup.items()
    patches = [(name, comfy.utils.set_attr(model.model, name, original)) for name, original in originals]
    try:
        yield
    finally:
        for name, patch in reversed(patches):
            comfy.utils.set_attr(model.model, name, patch)


def mark_conditioning(conditioning: Conditioning, key: str, roles: RowRoles) -> Conditioning:
    """A copy of the conditioning that passes ``roles`` to the patch with this key."""
    return [[text, mark(options, key, roles)] for text, options in conditioning]


def add_low_rank_updates(model: ModelPatcher, updates: Mapping[str, tuple[Tensor, Tensor]], strength: float) -> None:
    """Adds up @ down to UNet weights as the host's own weight patches: merged when loaded, restored when unloaded.

    8-bit weights would round the updates away; for them, they are added to the cast weight on every use instead.
    """
    if strength == 0:
        return
    merged: dict[str, Tensor] = {}
    targets: dict[str, str] = {}
    unmerged: list[UnmergedUpdate] = []
    for name, (up, down) in updates.items():
        key = f"diffusion_model.{name}"
        if _is_8_bit(model, key):
            # Checkpoints in "scaled fp8" multiply the weight afterwards.
            scale = getattr(comfy.utils.get_attr(model.model, key.removesuffix(".weight")), "scale_weight", None)
            factor = strength / (1.0 if scale is None else float(scale))
            unmerged.append(UnmergedUpdate(up, down, factor, string_to_seed(key)))
            model.add_weight_wrapper(key, unmerged[-1])
        else:
            merged[f"{name}.lora_up.weight"], merged[f"{name}.lora_down.weight"] = up, down
            targets[name] = key
    model.add_patches(comfy.lora.load_lora(merged, targets), strength)
    model.add_callback(CallbacksMP.ON_LOAD, _warn_if_hidden({f"diffusion_model.{name}" for name in updates}))
    if unmerged:
        _log.info(
            "The model has 8-bit weights: the low-rank updates are added while it runs. Model Save leaves them out, "
            "and model merges keep all those of model1 and none of model2. Use a 16-bit model for these."
        )
        model.add_callback(CallbacksMP.ON_DETACH, _free_on_detach(unmerged))


def _warn_if_hidden(updated: Set[str]) -> Callable[..., None]:
    """A callback that warns if torch.compile has hidden the weights from the host, which skips them silently."""

    def tell(model: ModelPatcher, *_: Any) -> None:
        if not updated <= {name for name, _ in model.model.named_parameters(remove_duplicate=False)}:
            _log.warning(
                "A node has compiled the model in a way that hides its weights from LoRAs, and from the low-rank "
                "updates of Apply DynamicID: they have no effect, and the likeness suffers. Compile it with "
                "TorchCompileModel instead."
            )

    return tell


def _is_8_bit(model: ModelPatcher, key: str) -> bool:
    """Whether a weight has 8 bits, even if wrapped in a tensor of the compute dtype. Bytes are other packs' formats."""
    weight = comfy.utils.get_attr(model.model, key)
    if hasattr(weight, "_qdata"):
        return bool(weight._qdata.dtype.itemsize == 1)
    dtype = weight.dtype
    if getattr(model, "is_dynamic", lambda: False)():
        # With dynamic VRAM, of later hosts, the weight is stored as in its file, and cast to this dtype when loaded.
        layer = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
        dtype = getattr(layer, "weight_comfy_model_dtype", None) or dtype
    return bool(dtype.itemsize == 1 and dtype.is_floating_point)


def _free_on_detach(updates: Sequence["UnmergedUpdate"]) -> Callable[[ModelPatcher, bool], None]:
    """A callback that moves updates off the device: the host moves them there with the weights, but not back.

    It does so even if the weights stay for another clone of the model, which mostly has other updates.
    """

    def free(model: ModelPatcher, _: bool) -> None:
        for update in updates:
            update.move_to(model.offload_device)

    return free


class UnmergedUpdate:
    """Adds a low-rank update to a weight that the host has just cast for use.

    seed: with --fast the host keeps the weight in 8 bits, whose steps are larger than most updates. The sum is then
    rounded stochastically, as by the host: the same at every step of a sampling, and exact on average.
    """

    def __init__(self, up: Tensor, down: Tensor, strength: float, seed: int) -> None:
        self._up, self._down, self._strength, self._seed = up, down, strength, seed

    def __call__(self, weight: Tensor) -> Tensor:
        """The updated weight, in the dtype given."""
        is_small = weight.dtype.itemsize == 1
        wide = weight.float() if is_small else weight  # 8-bit types have no addition
        self.move_to(wide.device)  # freed, or partly unloaded by the host, and used by a clone that keeps the weights
        factors = (factor.to(wide.dtype) for factor in (self._up, self._down))
        updated = wide + self._strength * torch.mm(*factors)
        return comfy.float.stochastic_rounding(updated, weight.dtype, self._seed) if is_small else updated

    def move_to(self, device: torch.device) -> int:
        """Called by the host when it loads the weight; returns the bytes moved."""
        self._up, self._down = self._up.to(device), self._down.to(device)
        return self._up.nbytes + self._down.nbytes


def _check_face(face: Face, dynamicid: DynamicID) -> None:
    if face.token_size != dynamicid.token_size:
        raise InputError(
            f"The face was encoded for {face.base_model} (token size {face.token_size}), but the adapter is for "
            f"{dynamicid.family} (token size {dynamicid.token_size}). Encode the photo again with this adapter."
        )
