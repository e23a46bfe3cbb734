"""The box editor on Place Face, in a real browser on a running ComfyUI: numbers and picture."""

import pytest

from tests.browser.interface import BOX, SMALL, near


def test_a_new_node_shows_its_box(graph):
    node = graph.add_place_face()

    assert graph.numbers(node) == BOX
    assert graph.drawn(node) == near(BOX)


def test_dragging_the_box_changes_the_numbers(graph):
    node = graph.add_place_face(SMALL)
    before = graph.view(), graph.node_position(node)

    graph.drag(node, (0.5, 0.5), (0.7, 0.6))

    assert graph.numbers(node) == (0.6, 0.5, 0.2, 0.2)
    assert graph.drawn(node) == near((0.6, 0.5, 0.2, 0.2))
    assert (graph.view(), graph.node_position(node)) == before


def test_a_box_is_dragged_alike_in_a_zoomed_graph(graph):
    node = graph.add_place_face(SMALL, position=(200, 300))
    graph.page.evaluate("() => { window.app.canvas.ds.scale = 0.6 }")
    graph.settle()

    graph.drag(node, (0.5, 0.5), (0.7, 0.6))

    assert graph.numbers(node) == (0.6, 0.5, 0.2, 0.2)


def test_numbers_set_by_a_script_move_the_box(graph):
    node = graph.add_place_face()

    graph.set(node, "x", 0.4)
    graph.set(node, "height", 0.3)

    assert graph.drawn(node) == near((0.4, 0.1, 0.5, 0.3))


def test_a_typed_number_moves_the_box(graph):
    node = graph.add_place_face()
    left, top = graph.node_position(node)
    y = graph.page.evaluate("id => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'x').y", node)
    canvas = graph.page.locator("#graph-canvas").bounding_box()

    graph.page.mouse.dblclick(canvas["x"] + left + 160, canvas["y"] + top + y + 10)
    graph.page.locator(".graphdialog input").fill("0.07")
    graph.page.keyboard.press("Enter")

    assert graph.drawn(node) == near((0.07, 0.1, 0.5, 0.8))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ((0.6, 0.6), (0.8, 0.7), (0.4, 0.4, 0.4, 0.3)),
        ((0.4, 0.4), (0.3, 0.2), (0.3, 0.2, 0.3, 0.4)),
        ((0.6, 0.5), (0.7, 0.9), (0.4, 0.4, 0.3, 0.2)),
        ((0.5, 0.4), (0.9, 0.1), (0.4, 0.1, 0.2, 0.5)),
    ],
    ids=["bottom right corner", "top left corner", "right edge", "top edge"],
)
def test_a_handle_resizes_the_box(graph, start, end, expected):
    node = graph.add_place_face(SMALL)

    graph.drag(node, start, end)

    assert graph.numbers(node) == pytest.approx(expected)


def test_a_new_box_is_drawn_on_empty_space(graph):
    node = graph.add_place_face((0.02, 0.02, 0.2, 0.2))

    graph.drag(node, (0.9, 0.8), (0.5, 0.4))

    assert graph.numbers(node) == pytest.approx((0.5, 0.4, 0.4, 0.4))


def test_a_click_on_empty_space_leaves_the_box(graph):
    node = graph.add_place_face(SMALL)

    graph.drag(node, (0.9, 0.9), (0.9, 0.9))

    assert graph.numbers(node) == SMALL


def test_a_finger_draws(graph):
    node = graph.add_place_face((0.02, 0.02, 0.2, 0.2))

    graph.touch("touchStart", graph.point(node, 0.5, 0.4))
    for step in (0.6, 0.7, 0.8, 0.9):
        graph.touch("touchMove", graph.point(node, step, step - 0.1))
    graph.touch("touchEnd")
    graph.settle()

    assert graph.numbers(node) == pytest.approx((0.5, 0.4, 0.4, 0.4))


@pytest.mark.parametrize(
    ("first", "second"),
    [((0.4, 0.5), (0.7, 0.5)), ((0.4, 0.5), (1.5, 0.5)), ((1.5, 0.5), (0.4, 0.5))],
    ids=["both on the picture", "the second beside it", "the first beside it"],
)
def test_two_fingers_zoom_and_draw_nothing(graph, first, second):
    node = graph.add_place_face(SMALL)
    fingers = [graph.point(node, *place) for place in (first, second)]
    apart = 1 if first < second else -1

    graph.touch("touchStart", fingers[0])
    graph.touch("touchMove", (fingers[0][0], fingers[0][1] + 30))
    graph.touch("touchStart", *fingers)
    for step in (20, 40, 60):
        graph.touch("touchMove", *((x + apart * sign * step, y) for sign, (x, y) in zip((-1, 1), fingers, strict=True)))
    graph.touch("touchEnd")
    graph.settle()

    assert graph.view()[0] > 1
    assert graph.numbers(node) == SMALL


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ((0.5, 0.5), (2.0, -1.0), (0.8, 0.0, 0.2, 0.2)),
        ((0.6, 0.6), (2.0, 3.0), (0.4, 0.4, 0.6, 0.6)),
        ((0.6, 0.6), (0.1, 0.1), (0.4, 0.4, 0.01, 0.01)),
        ((0.9, 0.9), (-1.0, 0.95), (0.0, 0.9, 0.9, 0.05)),
    ],
    ids=["moved", "enlarged", "shrunk", "drawn"],
)
def test_boxes_stay_inside_the_picture(graph, start, end, expected):
    node = graph.add_place_face(SMALL)

    graph.drag(node, start, end)

    assert graph.numbers(node) == pytest.approx(expected)


def test_a_box_that_leaves_the_picture_is_called_so(graph):
    node = graph.add_place_face((0.6, 0.1, 0.5, 0.8))

    assert "leaves the picture" in graph.message(node)

    graph.drag(node, (0.8, 0.5), (0.8, 0.5001))
    graph.keys(node, "ArrowLeft")

    assert graph.numbers(node) == pytest.approx((0.49, 0.1, 0.5, 0.8))
    assert "leaves" not in graph.message(node)


def test_an_empty_box_is_called_so(graph):
    node = graph.add_place_face((0.2, 0.2, 0.0, 0.5))
    graph.settle()

    assert "is empty" in graph.message(node)


# --- keyboard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["ArrowRight", "ArrowUp"], (0.41, 0.39, 0.2, 0.2)),
        (["Shift+ArrowLeft", "Shift+ArrowDown"], (0.3, 0.5, 0.2, 0.2)),
        (["Control+ArrowRight", "Control+Shift+ArrowUp"], (0.4, 0.4, 0.21, 0.1)),
        (["Alt+ArrowLeft", "Alt+Shift+ArrowDown"], (0.4, 0.4, 0.19, 0.3)),
    ],
)
def test_arrow_keys_move_and_resize_the_box(graph, keys, expected):
    node = graph.add_place_face(SMALL)
    before = graph.node_position(node)

    graph.keys(node, *keys)

    assert graph.numbers(node) == pytest.approx(expected)
    assert graph.node_position(node) == before


def test_arrow_keys_move_the_box_by_what_the_numbers_show(graph, setting):
    setting("Comfy.FloatRoundingPrecision", 1)
    node = graph.add_place_face(SMALL)

    graph.keys(node, "ArrowRight", "ArrowUp", "Control+ArrowRight")

    assert graph.numbers(node) == pytest.approx((0.5, 0.3, 0.3, 0.2))


def test_the_picture_can_be_reached_and_left_with_tab(graph):
    node = graph.add_place_face()
    stage = graph.stage(node)
    focused = "stage => document.activeElement === stage"
    stage.focus()
    graph.page.keyboard.press("Shift+Tab")
    assert not stage.evaluate(focused)

    graph.page.keyboard.press("Tab")
    assert stage.evaluate(focused)
    assert stage.evaluate("stage => getComputedStyle(stage).outlineStyle") == "solid"

    graph.page.keyboard.press("Tab")
    assert not stage.evaluate(focused)


def test_the_box_is_described_to_screen_readers(graph):
    node = graph.add_place_face()

    graph.keys(node, "ArrowRight")

    label = graph.stage(node).get_attribute("aria-label")
    assert label == "Place of the face: left 26 %, top 10 %, width 50 %, height 80 %"
    assert graph.page.locator("[aria-live=polite]", has_text=label).count() == 1


def test_why_a_box_cannot_be_changed_is_described_to_screen_readers(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    stage = graph.stage(node)
    parts = "stage.getAttribute('aria-describedby').split(' ')"
    described = f"stage => {parts}.map(id => document.getElementById(id).textContent)"
    keys, _ = stage.evaluate(described)
    assert keys.startswith("Arrow keys")
    assert stage.get_attribute("aria-disabled") == "false"

    graph.connect(graph.add("SolidMask", (120, 160)), node, "mask")
    graph.keys(node, "ArrowRight")

    assert stage.evaluate(described) == ["The connected mask is used, not the box"]
    assert stage.get_attribute("aria-disabled") == "true"
    assert graph.page.locator("[aria-live=polite]", has_text="mask is used").count() == 1


def test_escape_cancels_a_drag(graph):
    node = graph.add_place_face(SMALL)

    graph.press(node, (0.5, 0.5), (0.7, 0.6))
    assert graph.numbers(node) != SMALL
    graph.page.keyboard.press("Escape")
    graph.page.mouse.move(*graph.point(node, 0.8, 0.8))
    graph.page.mouse.up()

    assert graph.numbers(node) == SMALL
    assert graph.drawn(node) == near(SMALL)


@pytest.mark.parametrize("change", ["drag", "keys"])
def test_undo_takes_a_change_back(graph, change):
    node = graph.add_place_face(SMALL)
    graph.remember()

    if change == "drag":
        graph.drag(node, (0.5, 0.5), (0.7, 0.6))
    else:
        graph.keys(node, "ArrowRight")
    assert graph.numbers(node) != SMALL
    graph.undo(node, x=0.4)

    assert graph.numbers(node) == SMALL
    assert graph.drawn(node) == near(SMALL)


def test_the_keyboard_stays_at_the_picture_when_a_change_is_taken_back(graph):
    node = graph.add_place_face(SMALL)
    graph.remember()
    graph.keys(node, "ArrowRight")

    graph.undo(node, x=0.4)
    graph.settle()
    graph.page.keyboard.press("ArrowDown")

    assert graph.numbers(node) == pytest.approx((0.4, 0.41, 0.2, 0.2))


def test_undo_does_not_give_the_keyboard_to_a_picture_that_was_left(graph):
    node = graph.add_place_face(SMALL)
    graph.remember()
    graph.keys(node, "ArrowRight")

    graph.page.mouse.click(*graph.point(node, 0.5, 1.03))
    graph.undo(node, x=0.4)
    graph.settle()

    assert not graph.stage(node).evaluate("stage => document.activeElement === stage")
