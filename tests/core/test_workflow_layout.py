"""The arrangement of the shipped workflows on ComfyUI's canvas."""

import json
from itertools import combinations
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
TITLE = 30  # pixels, above the position that a node has


def edges(node):
    """left, top, right, bottom"""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_two_nodes_of_a_workflow_overlap(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    assert nodes
    for one, other in combinations(nodes, 2):
        a, b = edges(one), edges(other)
        beside = a[2] <= b[0] or b[2] <= a[0]
        below = a[3] <= b[1] or b[3] <= a[1]
        assert beside or below, f"{one['id']} {one['type']} and {other['id']} {other['type']}"
