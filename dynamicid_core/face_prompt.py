"""Face prompts: expression and head pose as the sentence that the released model was trained with."""

import re

from torch import Tensor

from .expression import EXPRESSIONS

TURNED = 10.0
"""Degrees from which on a head counts as turned up, down or to a side, as in the released model."""


def face_prompt(expression: str | None, pose: Tensor | None) -> str:
    """The sentence for an expression (None: neutral) and a pose [3] (pitch, yaw, roll in degrees; None: front).

    For example "in a happy expression, facing down, in side view". Roll is not told.
    """
    pitch, yaw, _ = (0.0, 0.0, 0.0) if pose is None else pose.tolist()
    nod = "facing up, " if pitch > TURNED else "facing down, " if pitch < -TURNED else ""
    side = "front" if abs(yaw) < TURNED else "side"
    return f"in a {expression or EXPRESSIONS[0]} expression, {nod}in {side} view"


def expression_in(prompt: str) -> str | None:
    """The first of EXPRESSIONS that a prompt names; None if it names none."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return next((word for word in words if word in EXPRESSIONS), None)
