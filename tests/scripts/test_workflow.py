import pytest
from workflow import WorkflowError, to_api

INFO = {
    "Load": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler": [["euler", "ddim"]],
            },
            "optional": {"image": ["IMAGE"], "label": ["COMBO", {"options": ["x", "y"], "default": "x"}]},
        }
    },
    "Filter": {"input": {"required": {"image": ["IMAGE"], "mask": ["MASK"], "size": ["INT", {"default": 1}]}}},
    "Model": {"input": {"required": {}}},
}
SAMPLE_VALUES = [7, "randomize", 12, 5.0, "ddim", "y"]


def node(identifier, kind, values=(), inputs=(), outputs=(), **more):
    slots = [{"name": name, "type": of, "link": link} for name, of, link in inputs]
    return {
        "id": identifier,
        "type": kind,
        "widgets_values": values if isinstance(values, dict) else list(values),
        "inputs": slots,
        "outputs": [{"name": of, "type": of} for of in outputs],
        **more,
    }


def workflow(*nodes, links=()):
    return {"nodes": list(nodes), "links": list(links)}


def inputs_of(identifier, ui_workflow):
    return to_api(ui_workflow, INFO)[str(identifier)]["inputs"]


def test_values_get_their_names_and_the_seed_control_is_passed_over():
    got = inputs_of(1, workflow(node(1, "Sample", SAMPLE_VALUES)))
    assert got == {"seed": 7, "steps": 12, "cfg": 5.0, "sampler": "ddim", "label": "y"}


def test_seed_control_that_was_not_saved_is_not_missed():
    got = inputs_of(1, workflow(node(1, "Sample", [7, 12, 5.0, "ddim", "y"])))
    assert got["steps"] == 12
    assert got["label"] == "y"


def test_inputs_newer_than_the_workflow_take_their_defaults():
    got = inputs_of(1, workflow(node(1, "Sample", SAMPLE_VALUES[:-1])))
    assert got["label"] == "x"


def test_values_saved_by_name_are_used():
    got = inputs_of(1, workflow(node(1, "Sample", {"steps": 3, "sampler": "euler", "preview": 1})))
    assert got == {"seed": 0, "steps": 3, "cfg": 8.0, "sampler": "euler", "label": "x"}


@pytest.mark.parametrize("values", [["a.png", "image"], ["a.png"]])
def test_the_upload_button_is_no_input(values):
    assert inputs_of(1, workflow(node(1, "Load", values))) == {"image": "a.png"}


@pytest.mark.parametrize("named", [False, True])
def test_links_name_node_and_output(named):
    link = [5, 1, 0, 2, 0, "MODEL"]
    if named:
        link = dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
    nodes = node(1, "Model", outputs=["MODEL"]), node(2, "Sample", SAMPLE_VALUES, [("model", "MODEL", 5)])
    assert inputs_of(2, workflow(*nodes, links=[link]))["model"] == ["1", 0]


def test_a_link_into_a_widget_wins_over_its_value():
    nodes = node(1, "Model", outputs=["INT"]), node(2, "Sample", SAMPLE_VALUES, [("steps", "INT", 5)])
    assert inputs_of(2, workflow(*nodes, links=[[5, 1, 0, 2, 0, "INT"]]))["steps"] == ["1", 0]


def test_a_primitive_gives_its_value_and_disappears():
    nodes = (
        node(1, "PrimitiveNode", [33, "fixed"], outputs=["INT"]),
        node(2, "Sample", SAMPLE_VALUES, [("steps", "INT", 5)]),
    )
    prompt = to_api(workflow(*nodes, links=[[5, 1, 0, 2, 0, "INT"]]), INFO)
    assert list(prompt) == ["2"]
    assert prompt["2"]["inputs"]["steps"] == 33


def test_reroutes_are_followed_and_notes_left_out():
    prompt = to_api(
        workflow(
            node(1, "Model", outputs=["MODEL"]),
            node(2, "Reroute", inputs=[("", "*", 5)], outputs=["MODEL"]),
            node(3, "Reroute", inputs=[("", "*", 6)], outputs=["MODEL"]),
            node(4, "Sample", SAMPLE_VALUES, [("model", "MODEL", 7)]),
            node(8, "MarkdownNote", ["read me"]),
            links=[[5, 1, 0, 2, 0, "MODEL"], [6, 2, 0, 3, 0, "MODEL"], [7, 3, 0, 4, 0, "MODEL"]],
        ),
        INFO,
    )
    assert list(prompt) == ["1", "4"]
    assert prompt["4"]["inputs"]["model"] == ["1", 0]


def through_filter(mode):
    return to_api(
        workflow(
            node(1, "Load", ["a.png"], outputs=["IMAGE", "MASK"]),
            node(2, "Filter", [4], [("image", "IMAGE", 5), ("mask", "MASK", 6)], outputs=["MASK", "IMAGE"], mode=mode),
            node(3, "Sample", SAMPLE_VALUES, [("image", "IMAGE", 7)]),
            links=[[5, 1, 0, 2, 0, "IMAGE"], [6, 1, 1, 2, 1, "MASK"], [7, 2, 1, 3, 0, "IMAGE"]],
        ),
        INFO,
    )


def test_a_bypassed_node_passes_on_its_input_of_the_same_type():
    prompt = through_filter(mode=4)
    assert "2" not in prompt
    assert prompt["3"]["inputs"]["image"] == ["1", 0]


def test_an_input_from_a_muted_node_is_not_connected():
    prompt = through_filter(mode=2)
    assert "2" not in prompt
    assert "image" not in prompt["3"]["inputs"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"1": {"class_type": "Load", "inputs": {}}}, "API form already"),
        (workflow(node(1, "Nowhere")), r"node 1 \(Nowhere\) is unknown"),
        (
            workflow(node(1, "Sample", [7, "randomize", "ddim"])),
            r"node 1 \(Sample\): the saved value of 'steps' is 'ddim'",
        ),
        (workflow(node(2, "Sample", SAMPLE_VALUES, [("model", "MODEL", 5)])), "link 5 is broken"),
        ({"nodes": [node(1, "ab-cd")], "definitions": {"subgraphs": [{"id": "ab-cd"}]}}, "node 1 is a subgraph"),
    ],
)
def test_what_cannot_be_converted_is_said(broken, message):
    with pytest.raises(WorkflowError, match=message):
        to_api(broken, INFO)
