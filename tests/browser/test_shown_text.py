"""The text that a node shows after it has run, in a real browser on a running ComfyUI."""

import pytest
from browser import load_workflow
from thumbnails import SEND_OUTPUTS

from tests.browser.interface import NODE

KINDS = ("DynamicIDDescribeFace", "DynamicIDSaveFace", "DynamicIDSaveKeypoints")


def tell(graph, node, text):
    """As if the server had just run the node."""
    graph.page.evaluate(SEND_OUTPUTS, {str(node): {"text": [text]}})
    graph.settle()


def text_on(graph, node):
    """The text in a node's text field, and whether it can be edited."""
    shown = f"""id => {{
        {NODE}
        const fields = [...document.querySelectorAll(`[data-node-id="${{id}}"] textarea`)];
        const widget = node.widgets?.find(widget => widget.name === "shown_text");
        const field = fields[0] ?? widget?.element;
        return field?.checkVisibility({{visibilityProperty: true}}) ? [field.value, field.readOnly] : null;
    }}"""
    graph.page.wait_for_function(shown, arg=node, timeout=5000)
    return graph.page.evaluate(shown, node)


@pytest.mark.parametrize("page_elements", [False, True], ids=["drawn nodes", "nodes made of page elements"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_node_shows_what_it_says(graph, setting, kind, page_elements):
    if page_elements and not graph.page.evaluate("() => 'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this interface has no such nodes")
    setting("Comfy.VueNodes.Enabled", page_elements)
    node = graph.add(kind, (120, 160))

    tell(graph, node, "Saved as anna_2.safetensors")
    assert text_on(graph, node) == ["Saved as anna_2.safetensors", True]
    tell(graph, node, "Saved as anna_3.safetensors")
    graph.page.wait_for_timeout(300)
    assert text_on(graph, node) == ["Saved as anna_3.safetensors", True]


def test_neither_the_workflow_nor_the_prompt_carries_what_a_node_says(graph, save_picture):
    node = graph.add("DynamicIDSaveFace", (120, 160), name="anna")
    tell(graph, node, "Saved as anna_2.safetensors")
    save_picture("shown_text")

    for _ in range(2):
        saved = graph.saved()
        assert [saved_node["widgets_values"] for saved_node in saved["nodes"]] == [["anna"]]
        prompt = graph.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        assert prompt[str(node)]["inputs"] == {"name": "anna"}
        load_workflow(graph.page, saved)
        graph.show_at_natural_size()
        assert graph.get(node, "name") == "anna"
        tell(graph, node, "Saved as anna_3.safetensors")
        assert text_on(graph, node)[0] == "Saved as anna_3.safetensors"
        assert graph.saved()["nodes"][0]["size"] == saved["nodes"][0]["size"]


def test_the_text_is_as_wide_as_its_node(graph, setting, save_picture):
    if not graph.page.evaluate("() => 'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this interface has no nodes made of page elements")
    setting("Comfy.VueNodes.Enabled", True)
    node = graph.add("DynamicIDSaveFace", (120, 160))
    tell(graph, node, "Saved as anna_2.safetensors")
    text_on(graph, node)
    save_picture("shown_text_page_elements")
    text, around = (
        graph.page.locator(f'[data-node-id="{node}"]{part}').first.bounding_box()["width"] for part in (" textarea", "")
    )
    assert text > 0.8 * around


def test_a_node_has_room_for_what_it_says(graph):
    node = graph.add("DynamicIDDescribeFace", (120, 160))
    tell(graph, node, "in a happy expression, looking to the left and up")
    room = f"id => {{ {NODE} const least = node.computeSize(); return node.size.map((edge, at) => edge - least[at]) }}"
    assert min(graph.page.evaluate(room, node)) >= 0
