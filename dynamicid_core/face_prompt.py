"""Face prompts: expression and head pose as a sentence, in the form that the released model was trained on."""

import re
from itertools import pairwise

from torch import Tensor

from .expression import EXPRESSIONS, NEUTRAL

TURN_THRESHOLD = 10.0
"""Degrees from which a head counts as turned up, down or to a side, as in the released model."""

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
_NEGATIONS = "hardly", "neither", "never", "no", "nor", "not", "without"  # and words in n't
_FILLERS = "a", "all", "an", "any", "at", "longer", "that", "the", "too", "very"
_VIEW = re.compile(
    r"\b(view|profile|facing|from the (front|side)|(looking|turned) (left|right|away|to|towards|aside)"
    r"|looking (up|down|at|straight))\b"
)


def face_prompt(expression: str | None, pose: Tensor | None) -> str:
    """The sentence for an expression (None: neutral) and a pose [3] (pitch, yaw, roll in degrees; None: front).

    For example "in a happy expression, facing down, in side view". Roll is left out.
    """
    return f"in a {expression or NEUTRAL} expression, {_view(pose)}"


def add_view(prompt: str, pose: Tensor | None) -> str:
    """Adds the words for a pose [3] (see ``face_prompt``) to a prompt, unless the pose is None or the prompt names a
    view itself.
    """
    prompt = prompt.strip()
    return prompt if pose is None or _VIEW.search(prompt.lower()) else f"{prompt.rstrip(',.')}, {_view(pose)}"


def _view(pose: Tensor | None) -> str:
    pitch, yaw, _ = (0.0, 0.0, 0.0) if pose is None else pose.tolist()
    nod = "facing up, " if pitch > TURN_THRESHOLD else "facing down, " if pitch < -TURN_THRESHOLD else ""
    return f"{nod}in {'front' if abs(yaw) < TURN_THRESHOLD else 'side'} view"


def find_expression(prompt: str) -> str | None:
    """The first of EXPRESSIONS that a prompt names, by that word or a common one for it; None if it names none.

    Any other goes before "neutral": a calm smile is a smile. A word after "not", "without" or the like does not count.
    """
    words = [word for word in re.findall(r"[a-z']+", prompt.lower()) if word not in _FILLERS]
    named = [
        _EXPRESSION_OF[word]
        for before, word in pairwise(["", *words])
        if word in _EXPRESSION_OF and before not in _NEGATIONS and not before.endswith("n't")
    ]
    return next((name for name in named if name != NEUTRAL), named[0] if named else None)
