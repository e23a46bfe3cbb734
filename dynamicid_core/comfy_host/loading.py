"""The networks of an adapter under ComfyUI's memory management."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .. import adapter
from ..checkpoint import IMR, KEYPOINT_ENCODER, Checkpoint, Variant
from ..errors import InputError
from ..face_encoder import FaceEncoder, FaceEncoderSizes
from ..imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes


@dataclass(frozen=True, eq=False)
class DynamicID:
    """A loaded adapter, with IMR and keypoint encoder if chosen; all networks under the host's memory management.

    variant, recognition, family: see ``Checkpoint``. updates: the tensors of the adapter's low-rank updates, see
    ``adapter.update_weights``. Its other tensors are in the networks only, so that they are in memory once.
    """

    variant: Variant
    recognition: str
    family: str
    updates: dict[str, Tensor]
    face_encoder: ModelPatcher
    projections: ModelPatcher
    imr: ModelPatcher | None = None
    keypoint_encoder: ModelPatcher | None = None

    @property
    def token_size(self) -> int:
        """Of the face encoder's tokens."""
        return self.face_encoder.model.sizes.token_size


def load_dynamicid(
    checkpoint: Checkpoint, imr: Checkpoint | None = None, keypoint_encoder: Checkpoint | None = None
) -> DynamicID:
    """Builds the networks in the dtypes of their files; ComfyUI moves and casts them when they run. Raises InputError
    for parts that do not fit each other.
    """
    encoder, tensors = checkpoint.modules["face_encoder"], checkpoint.modules["saa"]
    projections = adapter.projection_weights(tensors)
    return DynamicID(
        checkpoint.variant,
        checkpoint.recognition,
        checkpoint.family,
        adapter.update_weights(tensors),
        _patcher(
            lambda **factory_kwargs: FaceEncoder(FaceEncoderSizes.from_state_dict(encoder), **factory_kwargs), encoder
        ),
        _patcher(
            lambda **factory_kwargs: adapter.IdentityProjections(adapter.projection_sizes(tensors), **factory_kwargs),
            projections,
        ),
        _imr(imr, checkpoint) if imr else None,
        _keypoint_encoder(keypoint_encoder) if keypoint_encoder else None,
    )


def _imr(imr: Checkpoint, adapter_checkpoint: Checkpoint) -> ModelPatcher:
    weights = imr.modules[IMR]
    if imr.family != adapter_checkpoint.family:
        raise InputError(
            f"The IMR edits faces of {imr.family}, but the adapter makes faces of {adapter_checkpoint.family}. Choose "
            "two that were trained together."
        )
    return _patcher(lambda **factory_kwargs: Imr(ImrSizes.from_state_dict(weights), **factory_kwargs), weights)


def _keypoint_encoder(keypoint_encoder: Checkpoint) -> ModelPatcher:
    """Convolutions in the file's dtype, batch normalisation in float32, since the host casts only the former."""
    weights = {
        key: tensor if ".conv_block.0." in key or not tensor.is_floating_point() else tensor.float()
        for key, tensor in keypoint_encoder.modules[KEYPOINT_ENCODER].items()
    }
    return _patcher(
        lambda **factory_kwargs: KeypointEncoder(KeypointEncoderSizes.from_state_dict(weights), **factory_kwargs),
        weights,
    )


def _patcher(build: Callable[..., nn.Module], weights: Mapping[str, Tensor]) -> ModelPatcher:
    """A network with the file's own tensors, neither copied nor cast: the host's layers cast them when they run."""
    network = build(operations=comfy.ops.manual_cast, device="meta")
    network.load_state_dict(dict(weights), strict=True, assign=True)
    return _managed(network.eval().requires_grad_(False))


def _managed(network: nn.Module) -> ModelPatcher:
    patcher = ModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (_copied, (network,))
    return patcher


def _copied(network: nn.Module, disable_dynamic: bool = False) -> ModelPatcher:
    """A copy of the network, for another GPU: later hosts can sample on several. disable_dynamic: as they pass it."""
    return _managed(copy.deepcopy(network))
