"""The box editor within ComfyUI: the prompt, the workflow, the graph's mouse handling, the interface's settings."""

import json

import pytest
from browser import EMPTY, load_workflow

from tests.browser.interface import BOX, NODE, PLACE_FACE, SMALL, layout, near


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


def test_undo_on_nodes_made_of_page_elements_leaves_a_drawing_that_works(graph, setting):
    if not graph.page.evaluate("() => 'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this interface has no such nodes")
    setting("Comfy.VueNodes.Enabled", True)
    node = graph.add_place_face(SMALL)
    graph.page.wait_for_timeout(500)
    graph.remember()

    graph.drag(node, (0.5, 0.5), (0.7, 0.6))
    assert graph.numbers(node) != SMALL
    graph.undo(node, x=0.4)
    graph.page.wait_for_timeout(500)

    assert graph.drawn(node) == near(SMALL)
    graph.drag(node, (0.5, 0.5), (0.6, 0.5))
    assert graph.numbers(node) == pytest.approx((0.5, 0.4, 0.2, 0.2))


def test_presses_that_change_no_box_move_no_node_made_of_page_elements(graph, setting):
    if not graph.page.evaluate("() => 'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this interface has no such nodes")
    setting("Comfy.VueNodes.Enabled", True)
    node = graph.add_place_face(SMALL, position=(480, 160))
    mask = graph.add("SolidMask", (120, 160))
    graph.page.wait_for_timeout(500)
    header = graph.page.locator(f'[data-node-id="{node}"]').first.bounding_box()
    graph.page.mouse.click(header["x"] + header["width"] / 2, header["y"] + 12)  # where a drag of the node last began
    before = graph.node_position(node)

    graph.press(node, (0.5, 0.5), (0.7, 0.6))
    graph.page.keyboard.press("Escape")
    for place in ((0.8, 0.8), (0.8, 1.02), (0.5, 0.9)):
        graph.page.mouse.move(*graph.point(node, *place), steps=3)
    graph.page.mouse.up()
    assert graph.node_position(node) == before

    graph.connect(mask, node, "mask")
    graph.drag(node, (0.5, 0.5), (0.7, 1.02))
    assert graph.node_position(node) == before
    assert graph.numbers(node) == SMALL


def test_the_smallest_node_has_room_for_its_picture(graph):
    node = graph.add_place_face()
    graph.page.evaluate(f"id => {{ {NODE} node.setSize(node.computeSize()) }}", node)
    graph.settle()

    editor = graph.stage(node).evaluate_handle("stage => stage.closest('.dynamicid-box-editor')").as_element()
    room = editor.evaluate("editor => editor.parentElement.getBoundingClientRect().bottom")
    assert editor.evaluate("editor => editor.getBoundingClientRect().bottom") <= room + 0.5


def test_nodes_of_a_subgraph_that_is_gone_are_no_longer_looked_after(graph):
    node = graph.add_place_face()
    graph.open_subgraph(graph.make_subgraph(node))
    graph.close_subgraphs()
    load_workflow(graph.page, EMPTY)
    graph.settle()

    # What an editor does every frame while it is not on the page.
    looks = graph.page.evaluate(
        """async () => {
            const {querySelector} = document;
            let looks = 0;
            document.querySelector = selector => {
                looks += selector.includes("dynamicid-box-editor");
                return querySelector.call(document, selector);
            };
            for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame);
            delete document.querySelector;
            return looks;
        }"""
    )
    assert looks == 0


@pytest.mark.parametrize(("locale", "text"), [("zh", "拖动方框"), ("zh-TW", "拖动方框"), ("fr", "Drag the box")])
def test_texts_are_in_the_language_of_the_interface(graph, locale, text):
    # Not by the setting, whose change reloads the graph at some later time.
    module = "/extensions/ComfyUI-DynamicID/js/box_editor/texts.js"

    hint = graph.page.evaluate(f"async locale => (await import('{module}')).textsFor(locale).hint", locale)

    assert text in hint


def test_the_picture_follows_a_light_palette(graph, setting, save_picture):
    node, _, _ = layout(graph)

    setting("Comfy.ColorPalette", "light")

    ground = graph.stage(node).evaluate("stage => getComputedStyle(stage).backgroundColor")
    assert min(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) > 180
    save_picture("box_editor_light")
