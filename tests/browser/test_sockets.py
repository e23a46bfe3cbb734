"""The pack's sockets in a real browser on a running ComfyUI: what a dropped link offers, and their colours."""

import math
from itertools import combinations

import pytest
from PIL import ImageColor

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
    options = graph.page.get_by_role("option")
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
    node = graph.add(kind, (560, 400))
    assert expected <= set(offered(graph, node, slot))


def test_links_offer_what_fits_after_a_refresh_too(graph, setting):
    setting("Comfy.LinkRelease.Action", "search box")
    graph.page.evaluate("() => window.app.refreshComboInNodes()")
    assert "Apply DynamicID" in offered(graph, graph.add("DynamicIDEncodeFace", (560, 400)), "face")


def test_links_of_other_types_offer_what_they_did(graph, setting):
    setting("Comfy.LinkRelease.Action", "search box")
    found = offered(graph, graph.add("DynamicIDLoader", (560, 400)), "dynamicid")
    assert {"Apply DynamicID", "Encode Face"} <= set(found)
    assert "Place Face" not in found


# --- colours ---------------------------------------------------------------------------------------------------------

TYPES = ("DYNAMICID", "FACE_ANALYSIS", "DYNAMICID_FACE", "DYNAMICID_PLACEMENTS", "FACE_KEYPOINTS")
EITHER = "DYNAMICID_FACE,DYNAMICID_PLACEMENTS"
# Of links, of sockets, and of sockets that are page elements.
COLOURS = """types => [
    {...window.LGraphCanvas.link_type_colors},
    {...window.app.canvas.default_connection_color_byType},
    Object.fromEntries(types.map(type => [
        type, getComputedStyle(document.body).getPropertyValue(`--color-datatype-${type}`).trim(),
    ])),
]"""


def distance(one, other):
    return math.dist(ImageColor.getrgb(one), ImageColor.getrgb(other))


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_the_types_of_the_pack_have_colours_of_their_own(graph, setting, palette):
    setting("Comfy.ColorPalette", "light" if palette == "dark" else "dark")
    setting("Comfy.ColorPalette", palette)
    graph.page.wait_for_timeout(300)
    links, sockets, elements = graph.page.evaluate(COLOURS, TYPES)

    own = [links[kind] for kind in TYPES]
    others = [
        links[kind] for kind in ("CLIP", "CLIP_VISION", "CONDITIONING", "IMAGE", "LATENT", "MASK", "MODEL", "VAE")
    ]
    assert min(distance(*pair) for pair in combinations(own, 2)) > 80
    assert min(distance(one, other) for one in own for other in others) > 60
    assert [sockets[kind] for kind in TYPES] == own
    assert [elements[kind] for kind in TYPES] == own
    assert sockets[EITHER] in own


def test_a_palette_with_a_colour_for_a_type_keeps_it(graph):
    give = "colour => { window.LGraphCanvas.link_type_colors.DYNAMICID_FACE = colour }"
    colour = "() => window.LGraphCanvas.link_type_colors.DYNAMICID_FACE"
    own = graph.page.evaluate(colour)
    graph.page.evaluate(give, "#123456")
    assert graph.page.evaluate(colour) == "#123456"
    graph.page.evaluate(give, "")
    assert graph.page.evaluate(colour) == own
