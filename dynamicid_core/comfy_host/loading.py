"""The networks of an adapter under ComfyUI's memory management."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .. import adapter
from ..checkpoint import Checkpoint
from ..face_encoder import FaceEncoder, FaceEncoderSizes


@dataclass(frozen=True, eq=False)
class DynamicID:
    """A loaded adapter, its networks under the host's memory management, with the IMR files that go with it."""

    checkpoint: Checkpoint
    face_encoder: ModelPatcher
    projections: ModelPatcher
    imr: Checkpoint | None = None
    keypoint_encoder: Checkpoint | None = None

    @property
    def token_size(self) -> int:
        """Of the tokens its face encoder makes."""
        return self.face_encoder.model.sizes.token_size


def load_dynamicid(
    checkpoint: Checkpoint, imr: Checkpoint | None = None, keypoint_encoder: Checkpoint | None = None
) -> DynamicID:
    """Builds the networks of an adapter in the dtype of its file; ComfyUI moves and casts them when they run."""
    encoder, tensors = checkpoint.modules["face_encoder"], checkpoint.modules["saa"]
    projections = adapter.projection_weights(tensors)
    return DynamicID(
        checkpoint,
        _patcher(lambda **placed: FaceEncoder(FaceEncoderSizes.of(encoder), **placed), encoder),
        _patcher(
            lambda **placed: adapter.IdentityProjections(adapter.projection_sizes(tensors), **placed), projections
        ),
        imr,
        keypoint_encoder,
    )


def _patcher(build: Callable[..., nn.Module], weights: Mapping[str, Tensor]) -> ModelPatcher:
    """A network on the file's own tensors, neither copied nor cast: the host's layers cast them when they are used."""
    network = build(operations=comfy.ops.manual_cast, device="meta")
    network.load_state_dict(dict(weights), strict=True, assign=True)
    network.eval().requires_grad_(False)
    return ModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
