"""Face prompts: expression and head pose as the sentence that the released model was trained with."""

import re
from itertools import pairwise

from torch import Tensor

from .expression import EXPRESSIONS

TURNED = 10.0
"""Degrees from which on a head counts as turned up, down or to a side, as in the released model."""


_WORDS = {
    "neutral": "calm expressionless relaxed serious",
    "happy": "cheerful delighted glad grin grinning grins joyful laugh laughing laughs smile smiles smiling",
    "sad": "cries crying sadness sorrowful tearful unhappy weeping",
    "angry": "anger annoyed enraged furious mad",
    "fearful": "afraid fear frightened scared terrified",
    "disgusted": "disgust",
    "surprised": "amazed astonished shocked startled surprise",
}
_EXPRESSION_OF = {word: name for name in EXPRESSIONS for word in (name, *_WORDS[name].split())}
_NEGATIONS = "no", "not", "without"
_VIEW = re.compile(r"\b(view|facing|front|side|profile|looking|turned)\b")
_FILLERS = "a", "an", "any", "that", "the", "too", "very"


def face_prompt(expression: str | None, pose: Tensor | None) -> str:
    """The sentence for an expression (None: neutral) and a pose [3] (pitch, yaw, roll in degrees; None: front).

    For example "in a happy expression, facing down, in side view". Roll is not told.
    """
    return f"in a {expression or EXPRESSIONS[0]} expression, {_view(pose)}"


def with_view(prompt: str, pose: Tensor | None) -> str:
    """The prompt, which gets the words for a pose [3] (see ``face_prompt``) if that is known, unless it speaks of one
    itself.
    """
    prompt = prompt.strip()
    return prompt if pose is None or _VIEW.search(prompt.lower()) else f"{prompt.rstrip(',.')}, {_view(pose)}"


def _view(pose: Tensor | None) -> str:
    pitch, yaw, _ = (0.0, 0.0, 0.0) if pose is None else pose.tolist()
    nod = "facing up, " if pitch > TURNED else "facing down, " if pitch < -TURNED else ""
    return f"{nod}in {'front' if abs(yaw) < TURNED else 'side'} view"


def expression_in(prompt: str) -> str | None:
    """The first of EXPRESSIONS that a prompt names, in that word or a common one for it; None if it names none.

    A word with "not", "no" or "without" before it is not named.
    """
    words = [word for word in re.findall(r"[a-z]+", prompt.lower()) if word not in _FILLERS]
    named = (_EXPRESSION_OF.get(word) for before, word in pairwise(["", *words]) if before not in _NEGATIONS)
    return next(filter(None, named), None)
