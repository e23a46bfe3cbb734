"""Everything that computes, from photo to picture, without what Apple's MPS device lacks.

No such device is needed: a dispatch mode sees every operation that PyTorch runs and refuses double precision.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import photos
from tests.host.graphs import tiny_clip
from tests.host.helpers import apply, core, driving, faces, make_face, run, sample, tiny_clip_vision, tiny_unet

MISSING = {torch.float64, torch.complex128}


class WithoutDoublePrecision(TorchDispatchMode):
    """Refuses operations that take or give what MPS lacks."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in MISSING:
                raise TypeError(f"{operation} with {tensor.dtype}: MPS has no such numbers")
        return result


def test_the_mode_refuses_double_precision():
    with WithoutDoublePrecision(), pytest.raises(TypeError, match="MPS has no such numbers"):
        torch.ones(2, dtype=torch.float32).double()


def test_encoding_a_photo(photo_dynamicid, face_analysis):
    clip_vision = tiny_clip_vision()
    with WithoutDoublePrecision():
        run(
            "DynamicIDEncodeFace",
            image=photos.image(photos.astronaut()),
            dynamicid=photo_dynamicid,
            face_analysis=face_analysis,
            clip_vision=clip_vision,
        )


def test_keypoints_and_editing(editor):
    clip = tiny_clip()
    with WithoutDoublePrecision():
        turned = run("DynamicIDPoseKeypoints", keypoints=driving(), preset="happy", yaw=20.0, smile=0.5)[0]
        run(
            "DynamicIDEditFace",
            face=make_face(),
            dynamicid=editor,
            clip=clip,
            target_prompt="happy",
            keypoints=turned,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_with_two_placed_people_in_every_step(dynamicid, dtype):
    """Without the host's sampler, whose schedules are computed in double precision on the CPU."""
    make, box = core("face").Placement, core("regions").Box
    placed = tuple(make(face, box(i / 2, 0.0, (i + 1) / 2, 1.0)) for i, face in enumerate(faces(2)))
    applied = apply(dynamicid, placed, model=tiny_unet(dtype))
    forward = applied[0].model.diffusion_model.forward

    def watched(*args, **kwargs):
        with WithoutDoublePrecision():
            return forward(*args, **kwargs)

    applied[0].model.diffusion_model.forward = watched
    assert sample(*applied).isfinite().all()
