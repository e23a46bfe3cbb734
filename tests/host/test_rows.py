"""Which person's tokens the rows of a batch have, and which part of the picture they show."""

from types import SimpleNamespace

import pytest

from tests.host.helpers import (
    core,
)


def test_tiles_of_a_batch_repeat_its_rows(dynamicid):
    rows = core("comfy_host.rows")
    batch = (rows.Row(rows.POSITIVE), rows.Row(rows.NEGATIVE))
    forward = rows.Forward(batch, 0.0, (8, 8), 6)
    assert forward.reordered(forward.order(6, (0, 1))).rows == batch * 3


@pytest.mark.parametrize(
    ("called", "parts", "batch", "order"),
    [
        (2, (1, 0), 4, (0, 1, 1, 1)),
        (2, (0, 1), 3, (0, 0, 1)),
        (4, (1, 0), 8, (0, 1, 2, 3, 2, 3, 2, 3)),  # two pictures
        (3, (1, 0, 0), 5, (0, 1, 1, 2, 2)),
        (1, (0,), 3, (0, 0, 0)),
    ],
)
def test_coupled_prompts_repeat_the_rows_of_all_but_the_negative_one(called, parts, batch, order):
    rows = core("comfy_host.rows")
    forward = rows.Forward((rows.Row(rows.POSITIVE),) * called, 0.0, (8, 8), called)
    assert forward.order(called, parts) == tuple(range(called))
    assert forward.order(batch, parts) == order


@pytest.mark.parametrize(
    ("called", "parts", "batch"), [(3, (1, 0), 3), (2, (1, 0), 1), (3, (1, 0, 0), 4), (2, (1, 1), 4), (2, (), 4)]
)
def test_a_batch_that_is_neither_tiled_nor_coupled_is_an_error(called, parts, batch):
    rows = core("comfy_host.rows")
    forward = rows.Forward((rows.Row(rows.POSITIVE),) * 2, 0.0, (8, 8), called)
    with pytest.raises(RuntimeError, match=f"{batch} rows reached a layer, but the conditioning describes 2"):
        forward.order(batch, parts)


@pytest.mark.parametrize(
    ("dim", "shown", "area"),
    [
        (3, range(2, 6), (8, 4, 0, 2)),
        (2, range(2, 6), (4, 12, 2, 0)),
        (2, [7], (1, 12, 7, 0)),
        (0, range(2, 6), None),  # of a batch: each picture is whole
        (3, [10, 11, 0, 1], None),
    ],
)
def test_a_context_window_is_the_part_of_the_picture_that_it_shows(dim, shown, area):
    rows, window = core("comfy_host.rows"), SimpleNamespace(dim=dim, index_list=list(shown))
    row, placed = rows.Row(rows.POSITIVE), rows.Row(rows.POSITIVE, (1, 1, 0, 0))
    assert rows.crop_to_window((row, placed), window, (8, 12)) == (row._replace(area=area), placed)
    assert rows.crop_to_window((row,), None, (8, 12)) == (row,)
