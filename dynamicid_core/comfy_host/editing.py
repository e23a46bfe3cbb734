"""Edits a face's expression and pose, with text encoder, keypoint encoder and IMR on the devices ComfyUI selects."""

import logging
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..checkpoint import base_model_name
from ..errors import InputError
from ..expression import EXPRESSIONS
from ..face import Face
from ..face_prompt import add_view, face_prompt, find_expression
from ..keypoints import Keypoints, encoder_input
from ..motion import edit_motion
from .loading import DynamicID

_log = logging.getLogger(__name__)


def edit_face(
    dynamicid: DynamicID,
    clip: Any,
    face: Face,
    target_prompt: str,
    target: Keypoints | None = None,
    source_prompt: str = "",
    strength: float = 1.0,
) -> Face:
    """The face with another expression and pose (paper section 3.3).

    target_prompt: the target motion as a sentence; one that does not name a view gets the words for that of the target
    keypoints. target: the target motion as keypoints; None for the face's own, with the preset of the expression that
    the target prompt names. source_prompt: the motion that the face shows; if empty, its description from encoding.
    strength: from 0, the tokens unchanged, to 1. Raises InputError for a missing IMR or keypoint encoder, an
    empty target prompt, a face without keypoints, and for a face or a text encoder of another model.
    """
    if strength == 0:
        return face
    imr, keypoint_encoder = _networks(dynamicid)
    own = _own_keypoints(face, imr)
    if not target_prompt.strip():
        raise InputError(
            "The target prompt is empty. Say which expression and pose the face should have, for example: "
            f"{face_prompt('happy', None)}. Strength 0 leaves the face as it is."
        )
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength:g}; it can be from 0 (untouched) to 1 (the full edit).")
    source_prompt = source_prompt.strip() or describe_face(face)
    target = target or _keypoints_from_prompt(own, target_prompt)
    target_prompt = add_view(target_prompt, target.pose)
    texts = torch.cat([pooled_text(clip, prompt) for prompt in (source_prompt, target_prompt)])
    _check_text_size(imr, keypoint_encoder, texts)
    comfy.model_management.load_models_gpu([imr, keypoint_encoder])
    rasters = torch.cat([encoder_input(keypoints.points) for keypoints in (own, target)])
    with torch.no_grad():
        motion = keypoint_encoder.model(rasters.to(keypoint_encoder.load_device))
        edited = _run_imr(imr, face.tokens, motion, texts, dynamicid.face_encoder.model.sizes.tokens)
    return replace(
        face,
        tokens=torch.lerp(face.tokens, edited, strength),
        keypoints=torch.lerp(own.points, target.points, strength),
        pose=target.pose if own.pose is None or target.pose is None else torch.lerp(own.pose, target.pose, strength),
        face_prompt=target_prompt if strength >= 0.5 else source_prompt,
        portrait=None,
    )


def describe_face(face: Face) -> str:
    """The face's prompt; if it has none, as in an old file, a neutral one with its pose."""
    return face.face_prompt or face_prompt(None, face.pose)


def pooled_text(clip: Any, prompt: str) -> Tensor:
    """The text encoder's pooled output for a prompt, float32 [1, size]. Brackets are plain text here, not weights,
    which face prompts of the released model do not have.
    """
    if clip is None:
        raise InputError("The clip input is empty: this checkpoint has no text encoder. Connect the CLIP of another.")
    plain = prompt.replace("\\(", "(").replace("\\)", ")")
    escaped = plain.replace("(", "\\(").replace(")", "\\)")
    _, pooled = clip.encode_from_tokens(clip.tokenize(escaped), return_pooled=True)
    if pooled is None:
        raise InputError("This text encoder gives no pooled output. Connect the CLIP of an SD1.5 checkpoint.")
    return pooled.float().cpu()


def _run_imr(imr: ModelPatcher, tokens: Tensor, motion: Tensor, texts: Tensor, per_person: int) -> Tensor:
    """Edited tokens [1, T, D], float32. motion, texts: [2, …], source and target. A face mixed by attention
    has the tokens of several people, which are edited separately so that they do not attend to each other.
    """
    device = imr.load_device
    source_motion, target_motion = motion.to(device).split(1)
    source_text, target_text = texts.to(device).split(1)
    edited = [
        imr.model(person.to(device), source_motion, target_motion, source_text, target_text)
        for person in tokens.split(per_person, dim=1)
    ]
    return torch.cat(edited, dim=1).float().cpu()


def _networks(dynamicid: DynamicID) -> tuple[ModelPatcher, ModelPatcher]:
    missing = [
        name
        for name, network in (("imr", dynamicid.imr), ("keypoint_encoder", dynamicid.keypoint_encoder))
        if network is None
    ]
    if dynamicid.imr is None or dynamicid.keypoint_encoder is None:
        raise InputError(
            f"Changing expression and pose needs the IMR and its keypoint encoder; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} set to none in Load DynamicID. Choose the file there (IMR.bin and "
            "key_point_encoder.bin of the released model, in models/dynamicid)."
        )
    return dynamicid.imr, dynamicid.keypoint_encoder


def _own_keypoints(face: Face, imr: ModelPatcher) -> Keypoints:
    token_size = imr.model.sizes.token_size
    if face.token_size != token_size:
        raise InputError(
            f"The face was encoded for {face.base_model} (token size {face.token_size}), but the IMR is for "
            f"{base_model_name(token_size)} (token size {token_size}). Encode the photo with the adapter that belongs "
            "to the IMR."
        )
    return face.motion()


def _keypoints_from_prompt(own: Keypoints, target_prompt: str) -> Keypoints:
    """The keypoints with the expression that the prompt names: the IMR was trained on prompts and keypoints that agree.
    With the miniature, a prompt with unchanged keypoints takes effect half as often.
    """
    expression = find_expression(target_prompt)
    if expression is None:
        _log.warning(
            'The target prompt "%s" names no expression, so the keypoints stay those of the photo, and words alone '
            "change little. Use one of these words, or connect keypoints: %s.",
            target_prompt.strip(),
            ", ".join(EXPRESSIONS),
        )
        return own
    return edit_motion(own, expression)


def _check_text_size(imr: ModelPatcher, keypoint_encoder: ModelPatcher, texts: Tensor) -> None:
    needed, features, found = imr.model.sizes.feature_size, keypoint_encoder.model.sizes.features, texts.shape[-1]
    if features >= needed:
        raise InputError(
            f"The keypoint encoder gives {features} features, but the IMR takes {needed} of keypoints and text "
            "together. Choose the keypoint encoder that was trained with this IMR in Load DynamicID."
        )
    if features + found != needed:
        raise InputError(
            f"This text encoder's pooled output has size {found}; the IMR needs {needed - features}. Connect the CLIP "
            "of an SD1.5 checkpoint, or choose the keypoint encoder that was trained with this IMR."
        )
