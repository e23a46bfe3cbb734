"""The exact positions of faces and landmarks against InsightFace's; hair and body without holes."""

import numpy as np
import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.expression import EXPRESSIONS
from dynamicid_core.training.synthetic import groups, people, shots
from dynamicid_core.training.synthetic.actions import RECIPES, face_actions
from dynamicid_core.training.synthetic.figure import build
from dynamicid_core.training.synthetic.render import View
from dynamicid_core.training.synthetic.shading import Lamp, draw

SIZE = 192


@pytest.fixture(scope="module")
def figures(mesh):
    return [build(people.random_identity(seed), mesh) for seed in (1, 2, 3)]


def front(figure):
    """Cover [H, W] of a figure seen from the front, with sky around it on three sides."""
    pose = (0.0, 0.0, 0.0)
    shot = shots.random_shot(figure.identity.seed, 0)
    posed = shots.move(figure, face_actions(figure.mesh, "neutral", 1, (0, 0)), pose)
    view = shots.portrait_view(figure, posed, shot, (SIZE, SIZE))
    return draw(figure, posed, View(pose, 0.7 * view.scale, (SIZE / 2, SIZE / 2), view.size), Lamp()).cover


def test_every_expression_of_the_pack_has_a_recipe(mesh):
    assert set(RECIPES) == set(EXPRESSIONS)
    with pytest.raises(InputError, match=r'"bored" is not an expression\. Choose one of: neutral, happy'):
        face_actions(mesh, "bored", 1, (0, 0))


def test_the_eyes_look_to_the_right_and_up(figures):
    figure = figures[0]
    straight, aside, above = (
        shots.move(figure, face_actions(figure.mesh, "neutral", 1, gaze), (0.0, 0.0, 0.0)).skin
        for gaze in ((0, 0), (20, 0), (0, 15))
    )
    for eye in ("left eye", "right eye"):
        rows = figure.landmarks[eye]
        assert (aside - straight)[rows, 0].mean() > 0.02, eye
        assert (above - straight)[rows, 1].mean() < -0.02, eye


def test_an_expression_moves_the_face_and_not_the_crown(figures):
    figure = figures[0]
    rest, surprised = (
        shots.move(figure, face_actions(figure.mesh, name, 1, (0, 0)), (0.0, 0.0, 0.0)).skin
        for name in ("neutral", "surprised")
    )
    moved = np.linalg.norm(surprised - rest, axis=1)
    assert moved[figure.face].max() > 0.1
    assert moved[rest[:, 1] < -1.3].max() < 0.01


def test_true_landmarks_are_those_that_the_detector_finds(figures, analysis):
    errors = []
    for figure in figures:
        for number in range(4):
            shot = shots.random_shot(figure.identity.seed, number)
            photo, landmarks = shots.take_with_landmarks(figure, shot, SIZE)
            found = analysis.detect(photo)[0].landmarks / SIZE
            errors.append(np.linalg.norm(found - list(landmarks.values()), axis=1))
    assert np.median(errors) < 0.02
    assert np.max(errors) < 0.08


@pytest.mark.parametrize("count", [2, 3])
def test_scenes_say_where_each_face_is_and_whose(figures, analysis, count):
    figures = figures[:count]
    references = []
    for figure in figures:
        photo = shots.take(figure, shots.random_shot(figure.identity.seed, 0), SIZE)
        references.append(analysis.embed(photo, analysis.detect(photo)[0]))
    scene = groups.arrange(figures, 11, 256)
    height, width = scene.picture.shape[:2]
    found = sorted(analysis.detect(scene.picture), key=lambda face: face.centre[0])
    assert len(found) == count
    for number, (face, box) in enumerate(zip(found, scene.faces, strict=True)):
        x, y = face.centre[0] / width, face.centre[1] / height
        assert box.x0 < x < box.x1
        assert box.y0 < y < box.y1
        likeness = np.stack(references) @ analysis.embed(scene.picture, face)
        assert likeness.argmax() == number


def test_nothing_shows_through_a_body(mesh):
    for seed in range(4):
        cover = front(build(people.random_identity(seed), mesh))
        assert cover[-1].mean() > 0.5, "the body ends above the picture's edge"
        below = np.maximum.accumulate(cover > 0.9, axis=0)[SIZE // 2 :, SIZE // 2 - 8 : SIZE // 2 + 8]
        assert (cover[SIZE // 2 :, SIZE // 2 - 8 : SIZE // 2 + 8] >= 0.9 * below).all()
