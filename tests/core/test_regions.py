"""Boxes on grids."""

import pytest
import torch

from dynamicid_core.errors import InputError
from dynamicid_core.regions import Box, layout_on_grid


def covered(box, height, width):
    return {tuple(cell) for cell in box.coverage(height, width).nonzero().tolist()}


def test_edges_are_truncated_to_cells():
    assert covered(Box(0.1, 0.1, 0.4, 0.5), 4, 4) == {(0, 0), (1, 0)}


def test_a_box_smaller_than_a_cell_covers_the_cell_of_its_centre():
    assert covered(Box(0.6, 0.3, 0.61, 0.31), 4, 4) == {(1, 2)}
    assert covered(Box(0.99, 0.99, 1.0, 1.0), 4, 4) == {(3, 3)}


@pytest.mark.parametrize("edges", [(0.5, 0, 0.5, 1), (0.6, 0, 0.4, 1), (0, 0.7, 1, 0.2)])
def test_an_empty_or_reversed_box_is_refused(edges):
    with pytest.raises(InputError, match="empty or reversed"):
        Box(*edges)


def test_a_box_with_an_edge_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="not numbers"):
        Box(0, float("nan"), 1, 1)


@pytest.mark.parametrize("edges", [(-0.1, 0, 1, 1), (0, 0, 1.2, 1)])
def test_a_box_outside_the_picture_is_refused(edges):
    with pytest.raises(InputError, match="leaves the picture"):
        Box(*edges)


def allowed(layout, height, width):
    return layout.allowed[0, 0].view(height, width, -1)


def test_inside_a_box_only_its_person_is_seen_outside_everybody():
    layout = layout_on_grid([Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 0.5)], [4, 4], 2, 2, boost=0)
    seen = allowed(layout, 2, 2)
    assert seen[0, 0].tolist() == [True] * 4 + [False] * 4
    assert seen[0, 1].tolist() == [False] * 4 + [True] * 4
    assert seen[1, 1].all()


def test_where_boxes_overlap_their_people_share():
    layout = layout_on_grid([Box(0, 0, 1, 1), Box(0, 0, 1, 1), Box(0, 0, 0.1, 0.1)], [1, 1, 1], 2, 2, boost=0)
    assert allowed(layout, 2, 2)[1, 1].tolist() == [True, True, False]


def test_a_person_without_a_box_is_allowed_everywhere():
    layout = layout_on_grid([Box(0, 0, 0.5, 1), None], [1, 1], 2, 2, boost=0)
    assert allowed(layout, 2, 2)[0, 0].tolist() == [True, True]


def test_nobody_with_a_box_is_no_layout():
    assert layout_on_grid([None, None], [4, 4], 2, 2, boost=2) is None


def test_the_boost_adds_inside_and_divides_outside_once_even_where_boxes_overlap():
    layout = layout_on_grid([Box(0, 0, 0.5, 1), Box(0, 0, 0.5, 0.5)], [4, 4], 2, 2, boost=2)
    gate = torch.full((1, 4, 1), 0.6) * layout.gate_scale + layout.gate_offset
    torch.testing.assert_close(gate.view(2, 2), torch.tensor([[2.6, 0.2], [2.6, 0.2]]))
