"""Editing the motion that keypoints show: turning the head, sliders for its features, and ready expressions.

The presets are our own mixtures of the facial actions that the template knows; no published model defines them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import head
from .errors import InputError, check_between
from .expression import NEUTRAL
from .keypoints import Keypoints

_log = logging.getLogger(__name__)
AS_IS = "as is"
LIMIT = 60.0
"""Degrees that a slider turns the head at most."""
_FURTHEST = 75.0  # degrees; beyond it the detector finds no faces, and nobody has trained with any

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

# What a slider does above and below zero.
_SLIDER_ACTIONS = {
    "smile": ("smile", "mouth_frown"),
    "mouth_open": ("mouth_open", "mouth_closed"),
    "brow_raise": ("brow_raise", "brow_lower"),
    "eyes_open": ("eyes_wide", "eyes_closed"),
}
_EYES = "left eye", "right eye"
# Actions that a neutral face is free of: all that a preset may have put in.
_EXPRESSIVE = tuple(dict.fromkeys(action for mixture in _MIXTURES.values() for action in mixture))


@dataclass(frozen=True)
class Features:
    """Sliders, each -1 to 1, 0 for as it is: smile (or mouth corners down), mouth open (or closed), brows up (or down),
    eyes open (or closed).
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
    features: Features = Features(),
) -> Keypoints:
    """The keypoints with the head turned by some degrees, an expression from PRESETS and sliders on top.

    Nothing set gives the same points. A preset takes the place of the expression that the points show. Raises
    InputError for values out of range.
    """
    _check(preset, {"yaw": yaw, "pitch": pitch, "roll": roll}, features)
    start = keypoints.head or head.lift(keypoints.points, keypoints.pose)
    pose = _within_reach(start.pose, torch.tensor([pitch, yaw, roll]))
    of_preset = _of_preset(start, preset)
    of_sliders = _of_sliders(start.displaced(of_preset), features)
    end = start.turned(pose).displaced(of_preset + of_sliders)
    return replace(
        keypoints,
        # Not the projection itself, whose rounding would move points although nothing is set.
        points=keypoints.points + (end.project() - start.project()),
        pose=end.pose,
        head=end,
        expression=keypoints.expression if preset == AS_IS else preset,
    )


def _check(preset: str, angles: Mapping[str, float], features: Features) -> None:
    if preset not in PRESETS:
        raise InputError(f'"{preset}" is not a preset. Choose one of: {", ".join(PRESETS)}.')
    for name, degrees in angles.items():
        if not -LIMIT <= degrees <= LIMIT:
            raise InputError(f"{name} is {degrees:g} degrees; it can be from {-LIMIT:g} to {LIMIT:g}.")
    for name, amount in vars(features).items():
        check_between(name, amount, -1, 1)


def _within_reach(pose: Tensor, turn: Tensor) -> Tensor:
    """The pose after a turn; not beyond where faces can be seen, unless the face was there before."""
    furthest = torch.tensor([_FURTHEST, _FURTHEST, torch.inf]).maximum(pose.abs())
    reached = (pose + turn).clamp(-furthest, furthest)
    if not torch.equal(reached, pose + turn):
        _log.warning("The head is turned to only %g degrees, so that the face can still be seen", _FURTHEST)
    return reached


def _of_preset(start: head.Head, preset: str) -> Tensor:
    """What a preset adds to the head's points, [106, 3]."""
    total = torch.zeros_like(start.individual)
    if preset != AS_IS:
        for name, amount in zip(_EXPRESSIVE, head.fit_actions(start, _EXPRESSIVE).tolist(), strict=True):
            total -= amount * _action(start, name)
        for name, amount in _MIXTURES[preset].items():
            total += amount * _action(start, name)
    return total


def _of_sliders(start: head.Head, features: Features) -> Tensor:
    """What the sliders add to the head's points, [106, 3]."""
    total = torch.zeros_like(start.individual)
    for slider, (above, below) in _SLIDER_ACTIONS.items():
        amount = getattr(features, slider)
        total += abs(amount) * _action(start, above if amount > 0 else below)
    return total


def _action(start: head.Head, name: str) -> Tensor:
    """The displacement [106, 3] of a full action on this face."""
    actions = head.template().actions
    if name == "mouth_closed":
        return -actions["mouth_open"] * _how_open(start, actions["mouth_open"])
    return _eyes_closed(start) if name == "eyes_closed" else actions[name]


def _eyes_closed(start: head.Head) -> Tensor:
    """As the template's action closes the average eyes: narrow ones have less to go, and on a turned face each eye has
    another way.
    """
    action = head.template().actions["eyes_closed"].clone()
    average = head.template().view(torch.zeros(1), torch.zeros(1))[0]  # from the front, as the action was measured
    for name in _EYES:
        eye = head.template().groups[name]
        lids = action[eye, 1] - action[eye, 1].mean()  # those of the upper lid go down, of the lower up
        narrower = (lids * (start.points - average)[eye, 1]).sum() / lids.square().sum()
        action[eye] *= (1 - narrower).clamp(0, 1.5)
    return action


def _how_open(start: head.Head, opening: Tensor) -> Tensor:
    """How much of an opening displacement [106, 3] would make the mouth as high as it is on this face; 0 or more."""
    average = _mouth_height(start.average)
    return ((_mouth_height(start.points) - average) / (_mouth_height(start.average + opening) - average)).clamp(min=0)


def _mouth_height(points: Tensor) -> Tensor:
    """Between the lips, in the head frame."""
    y = points[head.template().groups["mouth inner"], 1]
    return y.amax() - y.amin()
