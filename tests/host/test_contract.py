"""Saved workflows use ids of nodes, inputs and outputs: what tests/contract.json has stays what and where it is."""

import json
from pathlib import Path

import pytest

from tests.host.rig import node

CONTRACT = json.loads((Path(__file__).parents[1] / "contract.json").read_text(encoding="utf-8"))


def described(node_id):
    schema = node(node_id).define_schema()
    return {
        "inputs": [f"{one.id}: {one.get_io_type()}" for one in schema.inputs],
        "outputs": [one.get_io_type() for one in schema.outputs],
    }


@pytest.mark.parametrize("node_id", CONTRACT)
def test_what_saved_workflows_use_stays_where_it_is(node_id):
    now = described(node_id)
    for side, promised in CONTRACT[node_id].items():
        assert now[side][: len(promised)] == promised  # new ones come last


def test_new_nodes_inputs_and_outputs_are_promised_too():
    import nodes

    ours = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("DynamicID")}
    assert {node_id: described(node_id) for node_id in sorted(ours)} == CONTRACT, "add what is new to contract.json"
