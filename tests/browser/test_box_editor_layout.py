"""The box editor with several placed people: everybody is shown, and the picture is framed to fit."""

import pytest

from tests.browser.interface import BOX, BYPASSED, MUTED, NODE, SMALL, layout, near


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


def test_of_two_equal_boxes_the_own_one_is_taken_hold_of(graph):
    anna, ben, _ = layout(graph, first=BOX, second=BOX)

    graph.drag(ben, (0.5, 0.5), (0.6, 0.5))

    assert graph.numbers(anna) == BOX
    assert graph.numbers(ben) == pytest.approx((0.35, 0.1, 0.5, 0.8))


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

    graph.set_mode(ben, BYPASSED)

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
    graph.set_mode(auto, MUTED)
    assert graph.stage(node).query_selector("text").text_content() == "1"


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


@pytest.mark.parametrize("mode", [MUTED, BYPASSED], ids=["muted", "bypassed"])
def test_the_picture_is_that_of_a_sampler_which_will_run(graph, mode):
    _, ben, _ = layout(graph)
    second = graph.add("KSampler", (1120, 560))
    graph.connect(graph.ids("DynamicIDApply")[0], second, "model")
    graph.connect(graph.add("EmptyLatentImage", (840, 700), width=512, height=1024), second, "latent_image")

    def size():
        text = "stage.parentElement.querySelector('.dynamicid-size').textContent"
        return graph.stage(ben).evaluate(f"stage => {text}.match(/[0-9]+/g).map(Number)")

    assert size() == [768, 512]
    graph.set_mode(next(sampler for sampler in graph.ids("KSampler") if sampler != second), mode)
    assert size() == [512, 1024]


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


def test_a_mask_behind_a_bypassed_node_replaces_the_box(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    mask, inverted = graph.add("SolidMask", (120, 160)), graph.add("InvertMask", (120, 400))
    graph.connect(mask, inverted, "mask")
    graph.connect(inverted, node, "mask")

    graph.set_mode(inverted, BYPASSED)

    assert "mask is used" in graph.message(node)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("SolidMask", MUTED), ("SolidMask", BYPASSED), ("InvertMask", BYPASSED), ("Reroute", 0)],
    ids=["muted", "bypassed", "bypassed with nothing before it", "reroute of nothing"],
)
def test_a_mask_that_never_comes_does_not_replace_the_box(graph, kind, mode):
    node = graph.add_place_face(SMALL, position=(480, 160))
    source = graph.add(kind, (120, 160))
    graph.connect(source, node, "mask")

    graph.set_mode(source, mode)
    graph.drag(node, (0.5, 0.5), (0.7, 0.6))

    assert "mask" not in graph.message(node)
    assert graph.numbers(node) == pytest.approx((0.6, 0.5, 0.2, 0.2))


def test_a_mask_beside_a_bounding_box_is_called_a_mistake(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    sources = [graph.add("SolidMask", (120, top)) for top in (160, 400)]
    # Nodes that output bounding boxes come with other packs.
    graph.page.evaluate(f"id => {{ {NODE} node.outputs[0].type = '*' }}", sources[1])

    graph.connect(sources[1], node, "bounding_box")
    assert "bounding box is used" in graph.message(node)
    graph.connect(sources[0], node, "mask")

    assert "disconnect one" in graph.message(node)


def test_in_a_subgraph_a_mask_counts_if_its_node_has_one(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    graph.connect(graph.add("SolidMask", (120, 160)), node, "mask")
    outer = graph.make_subgraph(node)
    graph.open_subgraph(outer)
    assert "mask is used" in graph.message(node)

    graph.page.evaluate("id => window.app.graph.getNodeById(id).disconnectInput(0)", outer)
    graph.settle()

    assert "Drag" in graph.message(node)


def test_a_number_from_another_node_is_shown_and_kept(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    number = graph.add("PrimitiveFloat", (120, 160), value=0.1)

    graph.connect(number, node, "x")

    assert graph.drawn(node) == near((0.1, 0.4, 0.2, 0.2))
    graph.drag(node, (0.2, 0.5), (0.4, 0.7))
    assert graph.drawn(node) == near((0.1, 0.4, 0.2, 0.2))
    assert "other nodes" in graph.message(node)


def test_a_number_from_a_muted_node_is_kept_and_one_from_a_bypassed_node_is_not(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    number = graph.add("PrimitiveFloat", (120, 160), value=0.1)
    graph.connect(number, node, "x")

    graph.set_mode(number, MUTED)  # the run fails
    assert "other nodes" in graph.message(node)

    graph.set_mode(number, BYPASSED)  # the number on the node is used
    assert "other nodes" not in graph.message(node)
    assert graph.drawn(node) == near(SMALL)


def test_in_a_subgraph_the_numbers_of_its_node_are_shown(graph):
    node = graph.add_place_face(SMALL, position=(480, 160))
    number = graph.add("PrimitiveFloat", (120, 160), value=0.3)
    outer = graph.make_subgraph(node)
    graph.page.evaluate(
        """id => {
            const {subgraph} = window.app.graph.getNodeById(id);
            const [inner] = subgraph.nodes;
            subgraph.addInput("x", "FLOAT").connect(inner.inputs.find(input => input.name === "x"), inner);
        }""",
        outer,
    )
    graph.set(outer, "x", 0.05)
    graph.open_subgraph(outer)

    assert graph.drawn(node) == near((0.05, 0.4, 0.2, 0.2))
    assert "other nodes" in graph.message(node)

    graph.close_subgraphs()
    graph.connect(number, outer, "x")
    graph.open_subgraph(outer)
    assert graph.drawn(node) == near((0.3, 0.4, 0.2, 0.2))

    # With two nodes of one subgraph, it is undecidable whose numbers to show.
    graph.close_subgraphs()
    graph.add(graph.page.evaluate("id => window.app.graph.getNodeById(id).type", outer), (480, 600))
    graph.open_subgraph(outer)
    assert graph.drawn(node) == near(graph.numbers(node))
    assert "other nodes" in graph.message(node)
