"""Expression and pose as sentences."""

import pytest
import torch

from dynamicid_core.expression import EXPRESSIONS
from dynamicid_core.face_prompt import add_view, face_prompt, find_expression


@pytest.mark.parametrize(
    ("pose", "view"),
    [
        ((0, 0, 0), "in front view"),
        ((0, 9.9, 40), "in front view"),
        ((0, -10.1, 0), "in side view"),
        ((10.1, 0, 0), "facing up, in front view"),
        ((-10.1, 25, 0), "facing down, in side view"),
        ((10, 10, 0), "in side view"),
    ],
)
def test_the_sentence_is_the_released_models_for_each_pose(pose, view):
    assert face_prompt("happy", torch.tensor(pose, dtype=torch.float32)) == f"in a happy expression, {view}"


def test_what_is_not_known_is_neutral_and_in_front():
    assert face_prompt(None, None) == "in a neutral expression, in front view"


@pytest.mark.parametrize(
    ("prompt", "expression"),
    [
        ("a very Surprised expression, front view", "surprised"),
        ("smiling broadly", "happy"),
        ("not happy but scared", "fearful"),
        ("unhappy about the weather", "sad"),
        ("without a smile, calm", "neutral"),
        ("a relaxed, happy expression", "happy"),
        ("a calm smile", "happy"),
        ("she isn't smiling", None),
        ("not at all happy", None),
        ("never happy, no longer sad", None),
        ("neither happy nor sad", None),
        ("a madrigal in front view", None),
        ("", None),
    ],
)
def test_the_expression_is_read_from_a_prompt(prompt, expression):
    assert find_expression(prompt) == expression


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_expression_is_read_back_from_its_own_sentence(expression):
    assert find_expression(face_prompt(expression, None)) == expression


@pytest.mark.parametrize(
    ("prompt", "pose", "whole"),
    [
        ("in a happy expression", (0, 20, 0), "in a happy expression, in side view"),
        ("smiling. ", (-20, 0, 0), "smiling, facing down, in front view"),
        ("in a happy expression, in front view", (0, 40, 0), "in a happy expression, in front view"),
        ("sad, Side View", (0, 0, 0), "sad, Side View"),
        ("sad, looking up", (0, 0, 0), "sad, looking up"),
        ("a happy looking face", (0, 40, 0), "a happy looking face, in side view"),
    ],
)
def test_a_prompt_that_does_not_speak_of_the_view_gets_that_of_the_pose(prompt, pose, whole):
    assert add_view(prompt, torch.tensor(pose, dtype=torch.float32)) == whole


def test_without_a_pose_nothing_is_said_of_the_view():
    assert add_view(" happy", None) == "happy"
