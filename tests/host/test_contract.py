"""Saved workflows use ids of nodes, inputs and outputs: those in tests/contract.json keep their names and places.

Add what is new: outputs at the end; inputs at the end too, optional, and with a default that changes nothing.
"""

import json
from pathlib import Path

import nodes
import pytest

from tests.host.helpers import node

CONTRACT = json.loads((Path(__file__).parents[1] / "contract.json").read_text(encoding="utf-8"))
OURS = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("DynamicID")}


def described(node_id):
    schema = node(node_id).define_schema()
    return {
        "inputs": [f"{one.id}: {one.get_io_type()}{', optional' * bool(one.optional)}" for one in schema.inputs],
        "outputs": [f"{one.display_name or one.id}: {one.get_io_type()}" for one in schema.outputs],
    }


@pytest.mark.parametrize("node_id", sorted({*CONTRACT, *OURS}))
def test_what_saved_workflows_use_stays_where_it_is(node_id):
    assert described(node_id) == CONTRACT[node_id]
