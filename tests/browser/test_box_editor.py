"""The box editor on Place Face, in a real browser on a running ComfyUI."""

import json

import pytest
from browser import EMPTY, load_workflow

from tests.browser.interface import PLACE_FACE

BOX = (0.25, 0.1, 0.5, 0.8)
SMALL = (0.4, 0.4, 0.2, 0.2)


def near(box):
    """Within a line's width on the screen."""
    return pytest.approx(box, abs=0.012)


def layout(graph, first=(0.05, 0.2, 0.4, 0.7), second=(0.5, 0.1, 0.45, 0.8), size=(768, 512)):
    """Two people, the sampler they are for, and its latent. Ids of both Place Face nodes and of the latent."""
    anna = graph.add_place_face(first, title="Anna")
    ben = graph.add_place_face(second, position=(480, 160), title="Ben")
    apply = graph.add("DynamicIDApply", (840, 160))
    sampler = graph.add("KSampler", (1120, 160))
    latent = graph.add("EmptyLatentImage", (840, 560), width=size[0], height=size[1])
    graph.connect(anna, ben, "placements")
    graph.connect(ben, apply, "faces")
    graph.connect(apply, sampler, "model")
    graph.connect(latent, sampler, "latent_image")
    return anna, ben, latent


# --- numbers and picture ---------------------------------------------------------------------------------------------


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


def test_a_box_is_drawn_anew_on_empty_space(graph):
    node = graph.add_place_face((0.02, 0.02, 0.2, 0.2))

    graph.drag(node, (0.9, 0.8), (0.5, 0.4))

    assert graph.numbers(node) == pytest.approx((0.5, 0.4, 0.4, 0.4))


def test_a_click_on_empty_space_leaves_the_box(graph):
    node = graph.add_place_face(SMALL)

    graph.drag(node, (0.9, 0.9), (0.9, 0.9))

    assert graph.numbers(node) == SMALL


def test_a_finger_draws(graph):
    node = graph.add_place_face((0.02, 0.02, 0.2, 0.2))
    session = graph.page.context.new_cdp_session(graph.page)

    def touch(kind, *points):
        places = [dict(zip("xy", graph.point(node, *point), strict=True)) for point in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", (0.5, 0.4))
    for step in (0.6, 0.7, 0.8, 0.9):
        touch("touchMove", (step, step - 0.1))
    touch("touchEnd")
    graph.settle()

    assert graph.numbers(node) == pytest.approx((0.5, 0.4, 0.4, 0.4))


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


def test_the_box_is_told_to_screen_readers(graph):
    node = graph.add_place_face()

    graph.keys(node, "ArrowRight")

    label = graph.stage(node).get_attribute("aria-label")
    assert label == "Place of the face: left 26 %, top 10 %, width 50 %, height 80 %"
    assert graph.page.locator("[aria-live=polite]", has_text=label).count() == 1


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
    graph.page.evaluate("() => { window.app.canvas.emitBeforeChange(); window.app.canvas.emitAfterChange(); }")

    if change == "drag":
        graph.drag(node, (0.5, 0.5), (0.7, 0.6))
    else:
        graph.keys(node, "ArrowRight")
    assert graph.numbers(node) != SMALL
    graph.page.keyboard.press("Control+z")
    graph.page.wait_for_function("id => window.app.graph.getNodeById(id)?.widgets[0].value === 0.4", arg=node)

    assert graph.numbers(node) == SMALL
    assert graph.drawn(node) == near(SMALL)


# --- the whole layout ------------------------------------------------------------------------------------------------


def test_every_node_of_a_chain_shows_everybody(graph, save_picture):
    anna, ben, _ = layout(graph)

    for node in (anna, ben):
        assert graph.drawn(node, of=anna) == near((0.05, 0.2, 0.4, 0.7))
        assert graph.drawn(node, of=ben) == near((0.5, 0.1, 0.45, 0.8))
    assert "1 Anna" in graph.stage(ben).text_content()
    assert "2 Ben" in graph.stage(anna).text_content()
    save_picture("box_editor")


def test_any_box_of_the_layout_can_be_dragged(graph):
    anna, ben, _ = layout(graph)

    graph.drag(ben, (0.2, 0.5), (0.25, 0.55))
    graph.drag(anna, (0.95, 0.5), (0.85, 0.5))

    assert graph.numbers(anna) == pytest.approx((0.1, 0.25, 0.4, 0.7))
    assert graph.numbers(ben) == pytest.approx((0.5, 0.1, 0.35, 0.8))


def test_a_box_inside_another_can_be_taken_hold_of(graph):
    anna, ben, _ = layout(graph, first=SMALL, second=(0.0, 0.0, 1.0, 1.0))

    graph.drag(ben, (0.5, 0.5), (0.6, 0.5))

    assert graph.numbers(anna) == pytest.approx((0.5, 0.4, 0.2, 0.2))
    assert graph.numbers(ben) == (0, 0, 1, 1)


def test_a_disconnected_node_is_no_longer_shown(graph):
    anna, ben, _ = layout(graph)

    slot = "node.inputs.findIndex(input => input.name === 'placements')"
    graph.page.evaluate(f"id => {{ const node = window.app.graph.getNodeById(id); node.disconnectInput({slot}) }}", ben)

    assert graph.drawn(ben, of=anna) is None
    assert graph.drawn(ben) == near((0.5, 0.1, 0.45, 0.8))


def test_a_bypassed_node_is_not_shown_and_the_chain_goes_on(graph):
    anna, ben, _ = layout(graph)
    carl = graph.add_place_face(SMALL, position=(480, 600))
    graph.connect(ben, carl, "placements")

    graph.page.evaluate("id => { window.app.graph.getNodeById(id).mode = 4 }", ben)

    assert graph.drawn(carl, of=ben) is None
    assert graph.drawn(carl, of=anna) == near((0.05, 0.2, 0.4, 0.7))
    assert graph.stage(carl).text_content().endswith("2")


def test_people_are_counted_from_those_whom_auto_layout_placed(graph):
    auto = graph.add("DynamicIDAutoLayout", (120, 160))
    for name in ("face_1", "face_2"):
        graph.connect(graph.add("DynamicIDLoadFace", (120, 600)), auto, name)
    node = graph.add_place_face(position=(480, 160))

    graph.connect(auto, node, "placements")

    assert graph.stage(node).query_selector("text").text_content() == "3"


@pytest.mark.parametrize("size", [(768, 512), (512, 896)])
def test_the_picture_has_the_aspect_ratio_of_the_latent(graph, size):
    anna, ben, latent = layout(graph, size=size)

    def ratio(node):
        frame = graph.stage(node).bounding_box()
        return frame["width"] / frame["height"]

    assert ratio(anna) == pytest.approx(size[0] / size[1], rel=0.01)
    assert ratio(ben) == pytest.approx(size[0] / size[1], rel=0.01)
    graph.set(latent, "width", 1024)
    graph.settle()
    assert ratio(ben) == pytest.approx(1024 / size[1], rel=0.01)


def test_a_node_without_a_sampler_has_a_square_picture(graph):
    frame = graph.stage(graph.add_place_face()).bounding_box()

    assert frame["width"] == pytest.approx(frame["height"])


def test_a_connected_mask_is_said_to_replace_the_box(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    mask = graph.add("SolidMask", (120, 160))

    graph.connect(mask, node, "mask")
    graph.drag(node, (0.5, 0.5), (0.7, 0.7))

    assert "mask is used" in graph.message(node)
    assert graph.numbers(node) == SMALL


def test_a_number_from_another_node_is_shown_and_kept(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    number = graph.add("PrimitiveFloat", (120, 160), value=0.1)

    graph.connect(number, node, "x")

    assert graph.drawn(node) == near((0.1, 0.4, 0.2, 0.2))
    graph.drag(node, (0.2, 0.5), (0.4, 0.7))
    assert graph.drawn(node) == near((0.1, 0.4, 0.2, 0.2))
    assert "other nodes" in graph.message(node)


# --- prompt and workflow ---------------------------------------------------------------------------------------------


def test_the_queued_prompt_carries_the_numbers_of_a_dragged_box(graph):
    anna, ben, _ = layout(graph, first=SMALL)
    preview = graph.add("PreviewImage", (1120, 560))
    decode = graph.add("VAEDecode", (1120, 480))
    graph.connect(graph.ids("KSampler")[0], decode, "samples")
    graph.connect(decode, preview, "images")
    sent = []

    def answer(route):
        sent.append(json.loads(route.request.post_data))
        route.fulfill(json={"prompt_id": "test", "number": 1, "node_errors": {}})

    graph.page.route("**/prompt", answer)
    graph.drag(anna, (0.45, 0.5), (0.25, 0.6))
    with graph.page.expect_response("**/prompt"):
        graph.page.keyboard.press("Control+Enter")
    graph.page.unroute("**/prompt")

    inputs = sent[0]["prompt"][str(anna)]["inputs"]
    assert [inputs[name] for name in ("x", "y", "width", "height")] == pytest.approx([0.2, 0.5, 0.2, 0.2])
    assert set(inputs) == {"x", "y", "width", "height", "weight"}
    assert sent[0]["prompt"][str(ben)]["inputs"]["placements"] == [str(anna), 0]


def test_a_saved_workflow_shows_its_box_when_loaded(graph, save_picture):
    node = graph.add_place_face(SMALL)
    graph.drag(node, (0.5, 0.5), (0.7, 0.6))
    saved = graph.saved()
    assert [values["widgets_values"] for values in saved["nodes"]] == [pytest.approx([0.6, 0.5, 0.2, 0.2, 1])]

    load_workflow(graph.page, EMPTY)
    assert graph.ids(PLACE_FACE) == []
    load_workflow(graph.page, saved)
    graph.show_at_natural_size()

    (loaded,) = graph.ids(PLACE_FACE)
    assert graph.drawn(loaded) == near((0.6, 0.5, 0.2, 0.2))
    assert graph.saved()["nodes"][0]["size"] == saved["nodes"][0]["size"]
    graph.drag(loaded, (0.7, 0.6), (0.6, 0.6))
    assert graph.numbers(loaded) == pytest.approx((0.5, 0.5, 0.2, 0.2))
    save_picture("box_editor_loaded")


def test_the_wheel_over_the_picture_zooms_the_graph(graph):
    node = graph.add_place_face()
    graph.page.mouse.move(*graph.point(node, 0.5, 0.5))

    graph.page.mouse.wheel(0, -120)
    graph.settle()

    assert graph.view()[0] > 1


def test_the_middle_button_over_the_picture_pans_the_graph(graph):
    node = graph.add_place_face()
    x, y = graph.point(node, 0.5, 0.5)

    graph.page.mouse.move(x, y)
    graph.page.mouse.down(button="middle")
    graph.page.mouse.move(x + 50, y + 30, steps=3)
    graph.page.mouse.up(button="middle")

    assert graph.view() == pytest.approx([1, 50, 30])
    assert graph.numbers(node) == BOX


def test_the_right_button_over_the_picture_opens_the_menu_of_the_node(graph):
    node = graph.add_place_face()

    graph.page.mouse.click(*graph.point(node, 0.5, 0.5), button="right")

    menu = graph.page.locator(".litecontextmenu, .p-contextmenu, .p-menu").first
    menu.wait_for()
    assert "Bypass" in menu.text_content()
    graph.page.keyboard.press("Escape")


def test_dragging_works_on_nodes_made_of_page_elements(graph, setting, save_picture):
    if not graph.page.evaluate("() => 'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this interface has no such nodes")
    setting("Comfy.VueNodes.Enabled", True)
    anna, ben, _ = layout(graph)
    graph.page.wait_for_timeout(500)
    before = graph.node_position(ben)

    graph.drag(ben, (0.75, 0.5), (0.65, 0.6))
    graph.drag(ben, (0.2, 0.5), (0.3, 0.4))

    assert graph.numbers(ben) == pytest.approx((0.4, 0.2, 0.45, 0.8))
    assert graph.numbers(anna) == pytest.approx((0.15, 0.1, 0.4, 0.7))
    assert graph.node_position(ben) == before
    save_picture("box_editor_page_elements")


@pytest.mark.parametrize(("locale", "text"), [("zh", "拖动方框"), ("zh-TW", "拖动方框"), ("fr", "Drag the box")])
def test_texts_are_in_the_language_of_the_interface(graph, locale, text):
    # Not by the setting: a change of it loads the graph anew, at some later time.
    module = "/extensions/ComfyUI-DynamicID/js/box_editor/texts.js"

    hint = graph.page.evaluate(f"async locale => (await import('{module}')).textsFor(locale).hint", locale)

    assert text in hint


def test_the_picture_follows_a_light_palette(graph, setting, save_picture):
    node, _, _ = layout(graph)

    setting("Comfy.ColorPalette", "light")

    ground = graph.stage(node).evaluate("stage => getComputedStyle(stage).backgroundColor")
    assert min(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) > 180
    save_picture("box_editor_light")
