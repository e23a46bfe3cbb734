"""The pack's sockets, in a real browser on a running ComfyUI: what a link offers that is dropped into empty space."""

import pytest

from tests.browser.interface import NODE

SLOT = f"""([id, name]) => {{
    {NODE}
    const index = node.inputs.findIndex(input => input.name === name);
    const [x, y] = index < 0 ? node.getOutputPos(node.findOutputSlot(name)) : node.getInputPos(index);
    const frame = window.app.canvas.canvas.getBoundingClientRect();
    return [frame.left + x, frame.top + y, index < 0];
}}"""


def offered(graph, node, slot):
    """The nodes of the search that opens where a link from a socket is dropped."""
    x, y, to_the_right = graph.page.evaluate(SLOT, [node, slot])
    graph.page.mouse.move(x, y)
    graph.page.mouse.down()
    graph.page.mouse.move(x + (250 if to_the_right else -250), y + 60, steps=6)
    graph.page.mouse.up()
    options = graph.page.locator(".p-autocomplete-option")
    options.first.wait_for()
    graph.page.wait_for_timeout(500)  # the list changes once more when the filter is set
    names = [text.replace("\xa0", "\n").split("\n")[0] for text in options.all_inner_texts()]
    graph.page.keyboard.press("Escape")
    return names


@pytest.mark.parametrize(
    ("kind", "slot", "expected"),
    [
        ("DynamicIDEncodeFace", "face", {"Apply DynamicID", "Place Face", "Save Face"}),
        ("DynamicIDAutoLayout", "placements", {"Apply DynamicID", "Place Face"}),
        ("DynamicIDApply", "faces", {"Encode Face", "Place Face", "Auto Layout"}),
    ],
    ids=["face", "placements", "faces"],
)
def test_a_link_dropped_into_empty_space_offers_what_fits(graph, setting, kind, slot, expected):
    setting("Comfy.LinkRelease.Action", "search box")
    node = graph.add(kind, (560, 160))
    assert expected <= set(offered(graph, node, slot))


def test_links_offer_what_fits_after_a_refresh_too(graph, setting):
    setting("Comfy.LinkRelease.Action", "search box")
    graph.page.evaluate("() => window.app.refreshComboInNodes()")
    assert "Apply DynamicID" in offered(graph, graph.add("DynamicIDEncodeFace", (560, 160)), "face")


def test_links_of_other_types_offer_what_they_did(graph, setting):
    setting("Comfy.LinkRelease.Action", "search box")
    found = offered(graph, graph.add("DynamicIDLoader", (560, 160)), "dynamicid")
    assert {"Apply DynamicID", "Encode Face"} <= set(found)
    assert "Place Face" not in found
