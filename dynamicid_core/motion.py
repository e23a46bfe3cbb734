"""Edits the motion that keypoints show: turns the head, moves features by sliders, and applies expression presets.

The presets are our own mixtures of the template's facial actions; no published model defines them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import head
from .errors import InputError, check_range
from .expression import NEUTRAL
from .keypoints import Keypoints

_log = logging.getLogger(__name__)
AS_IS = "as is"
MAX_TURN = 60.0
"""The most degrees by which a slider turns the head."""
_MAX_POSE = 75.0  # degrees; beyond, the detector finds no faces, and no model was trained on any

_MIXTURES: Mapping[str, Mapping[str, float]] = {
    NEUTRAL: {},
    "happy": {"smile": 1.0, "cheek_squint": 0.6, "mouth_open": 0.15},
    "sad": {"mouth_frown": 1.0, "brow_inner_up": 1.0},
    "angry": {"brow_lower": 1.0, "nose_wrinkle": 0.4, "lips_pressed": 0.8, "eyes_wide": 0.3},
    "fearful": {"brow_raise": 0.5, "brow_inner_up": 0.8, "eyes_wide": 1.0, "lip_stretch": 0.9, "mouth_open": 0.25},
    "disgusted": {"nose_wrinkle": 1.0, "upper_lip_raise": 1.0, "brow_lower": 0.5, "mouth_frown": 0.4},
    "surprised": {"brow_raise": 1.0, "eyes_wide": 1.0, "mouth_open": 0.7},
}
PRESETS = (AS_IS, *_MIXTURES)

# The actions of each slider above and below zero.
_SLIDER_ACTIONS = {
    "smile": ("smile", "mouth_frown"),
    "mouth_open": ("mouth_open", "mouth_closed"),
    "brow_raise": ("brow_raise", "brow_lower"),
    "eyes_open": ("eyes_wide", "eyes_closed"),
}
_EYES = "left eye", "right eye"
# All actions of presets; a neutral face shows none of them.
_PRESET_ACTIONS = tuple(dict.fromkeys(action for mixture in _MIXTURES.values() for action in mixture))


@dataclass(frozen=True)
class FeatureSliders:
    """Sliders, each -1 to 1, 0 for no change: smile (or mouth corners down), mouth open (or closed), brows up (or
    down), eyes open (or closed).
    """

    smile: float = 0.0
    mouth_open: float = 0.0
    brow_raise: float = 0.0
    eyes_open: float = 0.0


def edit_motion(
    keypoints: Keypoints,
    preset: str = AS_IS,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    sliders: FeatureSliders = FeatureSliders(),
) -> Keypoints:
    """The keypoints with the head turned by these degrees, and with an expression from PRESETS and sliders on top.

    Without any edit the points stay the same. A preset replaces the expression that the points show. Raises InputError
    for values out of range.
    """
    _check(preset, {"yaw": yaw, "pitch": pitch, "roll": roll}, sliders)
    start = keypoints.head or head.lift(keypoints.points, keypoints.pose)
    pose = _limit_pose(start.pose, torch.tensor([pitch, yaw, roll]))
    from_preset = _preset_displacement(start, preset)
    from_sliders = _slider_displacement(start.displaced(from_preset), sliders)
    end = start.turned(pose).displaced(from_preset + from_sliders)
    return replace(
        keypoints,
        # Not the projection itself, whose rounding would move points even without an edit.
        points=keypoints.points + (end.project() - start.project()),
        pose=end.pose,
        head=end,
        expression=keypoints.expression if preset == AS_IS else preset,
    )


def _check(preset: str, angles: Mapping[str, float], sliders: FeatureSliders) -> None:
    if preset not in PRESETS:
        raise InputError(f'"{preset}" is not a preset. Choose one of: {", ".join(PRESETS)}.')
    for name, degrees in angles.items():
        if not -MAX_TURN <= degrees <= MAX_TURN:
            raise InputError(f"{name} is {degrees:g} degrees; it can be from {-MAX_TURN:g} to {MAX_TURN:g}.")
    for name, amount in vars(sliders).items():
        check_range(name, amount, -1, 1)


def _limit_pose(pose: Tensor, turn: Tensor) -> Tensor:
    """The pose after a turn, limited to where faces are visible, or to the face's own pose beyond that."""
    furthest = torch.tensor([_MAX_POSE, _MAX_POSE, torch.inf]).maximum(pose.abs())
    reached = (pose + turn).clamp(-furthest, furthest)
    if not torch.equal(reached, pose + turn):
        _log.warning("The head is turned to only %g degrees, so that the face can still be seen", _MAX_POSE)
    return reached


def _preset_displacement(start: head.Head, preset: str) -> Tensor:
    """The displacement of the head's points by a preset, [106, 3]."""
    total = torch.zeros_like(start.individual)
    if preset != AS_IS:
        for name, amount in zip(_PRESET_ACTIONS, head.fit_actions(start, _PRESET_ACTIONS).tolist(), strict=True):
            total -= amount * _action_displacement(start, name)
        for name, amount in _MIXTURES[preset].items():
            total += amount * _action_displacement(start, name)
    return total


def _slider_displacement(start: head.Head, sliders: FeatureSliders) -> Tensor:
    """The displacement of the head's points by the sliders, [106, 3]."""
    total = torch.zeros_like(start.individual)
    for slider, (above, below) in _SLIDER_ACTIONS.items():
        amount = getattr(sliders, slider)
        total += abs(amount) * _action_displacement(start, above if amount > 0 else below)
    return total


def _action_displacement(start: head.Head, name: str) -> Tensor:
    """The displacement [106, 3] by an action at full strength on this face."""
    actions = head.template().actions
    if name == "mouth_closed":
        return -actions["mouth_open"] * _mouth_openness(start, actions["mouth_open"])
    return _eyes_closed_displacement(start) if name == "eyes_closed" else actions[name]


def _eyes_closed_displacement(start: head.Head) -> Tensor:
    """The template's action, which closes average eyes, scaled for each eye: narrow eyes, and those of a turned face,
    have another distance to close.
    """
    action = head.template().actions["eyes_closed"].clone()
    average = head.template().view(torch.zeros(1), torch.zeros(1))[0]  # from the front, as the action was measured
    for name in _EYES:
        eye = head.template().groups[name]
        lids = action[eye, 1] - action[eye, 1].mean()  # the upper lid goes down, the lower one up
        narrower = (lids * (start.points - average)[eye, 1]).sum() / lids.square().sum()
        action[eye] *= (1 - narrower).clamp(0, 1.5)
    return action


def _mouth_openness(start: head.Head, opening: Tensor) -> Tensor:
    """The fraction of an opening displacement [106, 3] that opens the mouth as far as on this face; at least 0."""
    average = _mouth_height(start.average)
    return ((_mouth_height(start.points) - average) / (_mouth_height(start.average + opening) - average)).clamp(min=0)


def _mouth_height(points: Tensor) -> Tensor:
    """The opening between the lips, in the head frame."""
    y = points[head.template().groups["mouth inner"], 1]
    return y.amax() - y.amin()
