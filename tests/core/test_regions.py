"""Regions on grids."""

import numpy as np
import pytest
import torch

from dynamicid_core import saa
from dynamicid_core.errors import InputError
from dynamicid_core.regions import Box, PixelBox, from_bounding_box, from_mask, layout_on_grid


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
    return (layout.mask[0, 0] == 0).view(height, width, -1)


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
    assert layout.mask is None
    three = layout_on_grid([Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1), None], [1, 1, 1], 2, 2, boost=0)
    assert allowed(three, 2, 2)[0, 0].tolist() == [True, False, True]


def test_nobody_with_a_box_is_no_layout():
    assert layout_on_grid([None, None], [4, 4], 2, 2, boost=2) is None


def test_the_boost_adds_inside_and_divides_outside_once_even_where_boxes_overlap():
    layout = layout_on_grid([Box(0, 0, 0.5, 1), Box(0, 0, 0.5, 0.5)], [4, 4], 2, 2, boost=2)
    gate = torch.full((1, 4, 1), 0.6) * layout.gate_scale + layout.gate_offset
    torch.testing.assert_close(gate.view(2, 2), torch.tensor([[2.6, 0.2], [2.6, 0.2]]))


def test_a_corner_and_a_size_give_the_edges_as_they_were_written():
    assert Box.at(0.6, 0.1, 0.3, 0.2) == Box(0.6, 0.1, 0.9, 0.3)


def test_a_box_in_pixels_becomes_fractions_of_the_picture():
    assert PixelBox(64, 32, 128, 64).on_picture(256, 512) == Box(0.125, 0.125, 0.375, 0.375)
    assert PixelBox(-10, 0, 266, 512).on_picture(256, 256) == Box(0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("box", [PixelBox(600, 0, 10, 10), PixelBox(0, -20, 10, 10)])
def test_a_box_in_pixels_outside_the_picture_is_refused(box):
    with pytest.raises(InputError, match="outside the picture"):
        box.on_picture(512, 512)


def test_a_bounding_box_may_come_alone_or_in_a_list():
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    assert from_bounding_box(box) == from_bounding_box([box]) == from_bounding_box([[box]]) == PixelBox(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([], "a list of 0"), ([{}, {}], "a list of 2"), ([[{}, {}]], "a list of 2"), ("box", "found str"),
     ({"x": 1}, "found dict"), ({"x": 1, "y": 2, "width": 0, "height": 4}, "is empty")],
)  # fmt: skip
def test_other_bounding_boxes_are_refused(boxes, message):
    with pytest.raises(InputError, match=message):
        from_bounding_box(boxes)


def box_mask(box, height, width):
    return box.coverage(height, width)


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (100, 60)])
def test_a_mask_of_any_size_gives_the_grid_of_its_box(size):
    box = Box(0.25, 0.0, 0.75, 0.5)
    other = Box(0.0, 0.5, 1.0, 1.0)
    by_mask = layout_on_grid([from_mask(box_mask(box, *size)), other], [4, 4], 4, 4, boost=2)
    by_box = layout_on_grid([box, other], [4, 4], 4, 4, boost=2)
    assert torch.equal(by_mask.mask, by_box.mask)
    assert torch.equal(by_mask.gate_offset, by_box.gate_offset)
    assert by_mask.shares is None


def test_soft_mask_values_weaken_the_person_and_half_counts_as_inside():
    mask = torch.tensor([[1.0, 0.5, 0.25, 0.0]])
    layout = layout_on_grid([from_mask(mask), None], [1, 1], 1, 4, boost=2)
    assert layout.gate_offset.flatten().tolist() == [2, 2, 0, 0]
    assert layout.shares.of_people[0].T.tolist() == [[1.0, 0.5, 0.25, 1.0], [1.0] * 4]
    assert layout.shares.owners.tolist() == [[1, 0], [0, 1]]


def test_a_soft_mask_scales_the_contribution_of_its_person():
    query, keys, values, text = (torch.randn(1, n, 16) for n in (4, 2, 2, 4))
    identity = saa.project_tokens(keys, values, 2, torch.float32)
    settings = saa.SaaSettings(threshold=0.0)

    def added(mask):
        layout = layout_on_grid([from_mask(mask)], [2], 2, 2, boost=0)
        return saa.semantic_activated_attention(text, query, identity, settings, layout) - text

    whole, half = added(torch.ones(2, 2)), added(torch.full((2, 2), 0.5))
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=0)
    assert whole.abs().max() > 0


def test_a_spot_smaller_than_a_cell_keeps_the_cell_that_holds_most_of_it():
    mask = torch.zeros(64, 64)
    mask[40, 20] = 1.0
    covered = from_mask(mask).coverage(4, 4)
    assert covered.nonzero().tolist() == [[2, 1]]
    assert covered[2, 1] == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(8, 8), "0 everywhere"),
        (torch.zeros(0, 8), "at least one pixel"),
        (torch.ones(3, 8, 8), "a batch of 3"),
        (torch.ones(8), "shape"),
        (torch.full((8, 8), float("nan")), "not numbers"),
    ],
)
def test_masks_that_place_nobody_are_refused(mask, message):
    with pytest.raises(InputError, match=message):
        from_mask(mask)


def test_a_grid_that_shows_a_part_of_the_picture_has_that_part_of_the_region():
    box, left_half, right_half = Box(0.5, 0.0, 1.0, 0.5), Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)
    for region in (box, from_mask(box_mask(box, 64, 64))):
        assert not region.coverage(4, 4, left_half).any()
        assert region.coverage(4, 4, right_half).tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]


def test_rows_that_show_different_parts_have_layouts_of_their_own():
    left_half, right_half = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)
    regions = [Box(0.5, 0, 1, 1), Box(0, 0, 0.2, 0.2)]
    layout = layout_on_grid(regions, [1, 1], 2, 2, boost=2, views=(left_half, right_half))
    assert layout.gate_offset[0].flatten().tolist() == [2, 0, 0, 0]
    assert layout.gate_offset[1].eq(2).all()
    assert layout.mask.shape == (2, 1, 4, 2)


@pytest.mark.parametrize("cells", [8, 16, 32])
def test_a_mask_without_shades_is_in_or_out_wherever_its_edge_lies(cells):
    mask = torch.zeros(512, 512)
    mask[:, :216] = 1.0  # not a whole number of cells
    layout = layout_on_grid([from_mask(mask)], [4], cells, cells, boost=0)
    assert layout.shares is None
    assert set(from_mask(mask).coverage(cells, cells).flatten().tolist()) == {0.0, 1.0}


def test_a_mask_that_stays_below_a_half_still_places_its_person():
    layout = layout_on_grid([from_mask(torch.tensor([[0.3, 0.0]])), Box(0.5, 0, 1, 1)], [1, 1], 1, 2, boost=2)
    assert layout.gate_offset.flatten().tolist() == [2, 2]
    assert (layout.mask[0, 0] == 0).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("value", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("cells", [64, 32, 24])
def test_a_faint_mask_covers_all_of_its_place_on_every_grid(cells, value):
    mask = torch.zeros(512, 512)
    mask[:, :256] = value
    layout = layout_on_grid([from_mask(mask), from_mask(mask.flip(1))], [1, 1], cells, cells, boost=2)
    assert layout.gate_offset.eq(2).all()
    left = allowed(layout, cells, cells)[:, : cells // 2].reshape(-1, 2)
    assert left.tolist() == [[True, False]] * len(left)


def test_a_faint_mask_with_a_soft_edge_ends_at_half_of_what_it_has_at_most():
    region = from_mask(torch.tensor([[0.1, 0.19, 0.21, 0.4, 0.3, 0.0]]))
    layout = layout_on_grid([region], [1], 1, 6, boost=2)
    assert layout.gate_offset.flatten().tolist() == [0, 0, 2, 2, 2, 0]


@pytest.mark.parametrize("people", [2, 4])
def test_masks_lie_in_memory_as_fused_kernels_want_them(people):
    """With as many tokens as are attended to, nothing is filled up."""
    regions = [from_mask(torch.linspace(0, 1, 16).roll(4 * i).expand(16, 16)) for i in range(people)]
    layout = layout_on_grid(regions, [4] * people, 16, 16, boost=0, pad=True)
    assert layout.mask.is_contiguous()
    assert layout.shares.mask.is_contiguous()


def test_a_stronger_mask_never_covers_less():
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    counts = [
        (from_mask(ramp * peak).coverage(16, 16) >= from_mask(ramp * peak).inside_threshold).sum()
        for peak in (0.2, 0.49, 0.51, 1.0)
    ]
    assert len({int(count) for count in counts}) == 1


def test_what_an_area_cuts_off_of_a_box_is_no_cell_of_its_own():
    box = Box(0, 0, 0.333, 1)  # ends in cell 31 of 96, which it does not cover
    assert not box.coverage(1, 18, Box(31 / 96, 0, 49 / 96, 1)).any()
    tiny = Box(0.33, 0, 0.333, 1)  # less than a cell: it covers the one of its centre
    assert tiny.coverage(1, 18, Box(31 / 96, 0, 49 / 96, 1)).sum() == 1
    one_cell = Box(30.5 / 96, 0, 31.5 / 96, 1)  # half of it is cut off
    assert not one_cell.coverage(1, 18, Box(31 / 96, 0, 49 / 96, 1)).any()


@pytest.mark.parametrize("pixels", range(64, 2049, 8))
def test_a_box_in_pixels_that_ends_between_cells_covers_just_these_cells(pixels):
    for first in range(0, pixels // 8, 7):
        covered = PixelBox(8 * first, 0, 8, 64).on_picture(64, pixels).coverage(8, pixels // 8)[0]
        assert covered.nonzero().flatten().tolist() == [first]


def test_areas_that_end_between_cells_show_just_the_cells_of_a_box():
    for last in range(1, 97):
        for first in range(last):
            view = Box(0, 0, last / 96, 1)
            covered = Box(first / 96, 0, (first + 1) / 96, 1).coverage(1, last, view)[0]
            assert covered.nonzero().flatten().tolist() == [first]


def test_a_part_of_a_mask_that_ends_between_pixels_shows_no_pixel_more():
    for last in range(1, 104):
        mask = torch.zeros(1, 104)
        mask[0, last:] = 1
        assert not from_mask(mask).coverage(1, 1, Box(0, 0, last / 104, 1)).any()


def test_a_part_of_the_picture_that_ends_inside_a_pixel_shows_that_pixel():
    lower_right = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert from_mask(lower_right).coverage(4, 4, Box(0, 0, 0.75, 0.75)).any()


def test_mask_values_above_1_count_as_1():
    assert torch.equal(from_mask(torch.tensor([[3.0, 0.5]])).mask, torch.tensor([[1.0, 0.5]]))


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_centre_of_a_mask_is_that_of_its_box(size):
    assert from_mask(torch.ones(size, size)).centre == pytest.approx((0.5, 0.5))
    corner = torch.zeros(2 * size, 4 * size)
    corner[:size, :size] = 1
    assert from_mask(corner).centre == pytest.approx((0.125, 0.25))


@pytest.mark.parametrize("value", ["5", None, float("nan")])
def test_a_bounding_box_of_something_else_than_numbers_is_refused(value):
    for name in ("x", "width"):
        with pytest.raises(InputError, match=rf"bounding box's {name} is .*must be a number of pixels"):
            from_bounding_box({"x": 0, "y": 0, "width": 5, "height": 5, name: value})


def test_a_bounding_box_may_hold_numbers_of_numpy():
    box = {"x": np.int64(1), "y": np.float32(2), "width": np.int32(3), "height": 4}
    assert from_bounding_box(box) == PixelBox(1, 2, 3, 4)


def test_a_bounding_box_of_small_whole_numbers_does_not_overflow():
    box = {"x": np.uint8(200), "y": np.uint8(0), "width": np.uint8(100), "height": np.uint8(100)}
    assert from_bounding_box(box).on_picture(400, 400) == Box(0.5, 0, 0.75, 0.25)
