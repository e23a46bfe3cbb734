"""Expressions and gaze as weights of the mesh's facial actions."""

from collections.abc import Mapping

from ...errors import InputError
from .mesh import HeadMesh, both_sides

RECIPES: dict[str, dict[str, float]] = {
    "neutral": {},
    "happy": {"mouthSmile": 1.05, "cheekSquint": 0.8, "eyeSquint": 0.3, "mouthUpperUp": 0.45, "jawOpen": 0.14,
              "mouthDimple": 0.3, "mouthLowerDown": 0.25, "browOuterUp": 0.15},
    "sad": {"browInnerUp": 1.45, "browDown": 0.3, "mouthFrown": 1.15, "mouthShrugLower": 0.6, "eyeSquint": 0.25,
            "eyeBlink": 0.2, "mouthRollLower": 0.15},
    "angry": {"browDown": 1.55, "eyeWide": 0.4, "noseSneer": 0.7, "mouthUpperUp": 0.45, "mouthLowerDown": 0.75,
              "mouthStretch": 0.45, "jawOpen": 0.17, "jawForward": 0.4, "mouthFrown": 0.35},
    "fearful": {"browInnerUp": 1.4, "browOuterUp": 0.5, "browDown": 0.45, "eyeWide": 1.3, "mouthStretch": 1.3,
                "jawOpen": 0.27, "mouthLowerDown": 0.65, "mouthFrown": 0.25},
    "disgusted": {"noseSneer": 1.4, "mouthUpperUp": 1.3, "browDown": 0.5, "eyeSquint": 0.9, "cheekSquint": 0.9,
                  "mouthFrown": 0.4, "mouthShrugLower": 0.4, "mouthRollLower": 0.2},
    "surprised": {"browInnerUp": 1.3, "browOuterUp": 1.3, "eyeWide": 1.25, "jawOpen": 0.72, "mouthFunnel": 0.2},
}  # fmt: skip
"""Expression -> facial actions at strength 1, after the muscles that act in each (FACS)."""

# Degrees by which eyes turn at full weight of the mesh's actions.
_TURNS_SIDEWAYS, _TURNS_UP = 30.0, 25.0


def face_actions(mesh: HeadMesh, expression: str, strength: float, gaze: tuple[float, float]) -> dict[str, float]:
    """Weights of the mesh's actions.

    strength: about 0 to 1.2. gaze: degrees to the picture's right and up, relative to the head; the lids follow. Raises
    InputError for an unknown expression.
    """
    if expression not in RECIPES:
        raise InputError(f'"{expression}" is not an expression. Choose one of: {", ".join(RECIPES)}.')
    recipe = {name: weight * strength for name, weight in RECIPES[expression].items()}
    return _on_both_sides(mesh, recipe) | _gaze(gaze)


def _on_both_sides(mesh: HeadMesh, actions: Mapping[str, float]) -> dict[str, float]:
    return {side: weight for name, weight in actions.items() for side in both_sides(name, mesh)}


def _gaze(gaze: tuple[float, float]) -> dict[str, float]:
    right, up = gaze[0] / _TURNS_SIDEWAYS, gaze[1] / _TURNS_UP
    # The person's left eye is the one on the picture's right.
    left_eye, right_eye = ("Out", "In") if right > 0 else ("In", "Out")
    vertical = "Up" if up > 0 else "Down"
    weights = {f"eyeLook{left_eye}Left": abs(right), f"eyeLook{right_eye}Right": abs(right)}
    return weights | {f"eyeLook{vertical}{side}": abs(up) for side in ("Left", "Right")}
