"""Turn a workflow as ComfyUI's interface saves it into the form its server runs, as the interface itself does.

A saved workflow lists the values of a node's widgets in order and without names; those are in the host's object_info.
Not handled: subgraphs, and `{a|b}` choices in prompts, of which the interface draws one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
# Exist in the interface only, under these names.
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode")

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEED_NAMES = ("seed", "noise_seed")
CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload", "file_upload")


class WorkflowError(Exception):
    """The workflow does not fit the host."""


@dataclass(frozen=True)
class Link:
    """Where a value comes from: a node's output."""

    origin: str
    slot: int
    type: str


@dataclass(frozen=True)
class Value:
    """What a PrimitiveNode feeds into a widget."""

    value: object


def to_api(ui_workflow: Json, object_info: Json) -> dict[str, Json]:
    """API form of a workflow: {node id: {class_type, inputs, _meta}}."""
    if "nodes" not in ui_workflow:
        raise WorkflowError("This is no saved workflow: it has no list of nodes. (Is it in API form already?)")
    graph = Graph(ui_workflow)
    prompt = {}
    for node in graph.nodes.values():
        if node["type"] in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
            continue
        prompt[str(node["id"])] = {
            "inputs": node_inputs(node, graph, object_info),
            "class_type": node["type"],
            "_meta": {"title": node.get("title") or node["type"]},
        }
    drop_links_to_missing(prompt)
    return prompt


def node_inputs(node: Json, graph: Graph, object_info: Json) -> Json:
    """Values of the node's widgets, and links, which take precedence."""
    if node["type"] not in object_info:
        raise WorkflowError(f"{describe(node)} is unknown to this ComfyUI: a node pack is missing or did not load.")
    inputs = {name: quote_list(value) for name, value in widget_values(node, object_info[node["type"]]).items()}
    for slot in node.get("inputs") or []:
        source = graph.source(slot.get("link"))
        if isinstance(source, Link):
            inputs[slot["name"]] = [source.origin, source.slot]
        elif source is not None:
            inputs[slot["name"]] = quote_list(source.value)
    return inputs


def drop_links_to_missing(prompt: dict[str, Json]) -> None:
    """As the interface does: an input from a muted node counts as not connected."""
    for node in prompt.values():
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        for name, (origin, _) in links.items():
            if origin not in prompt:
                del node["inputs"][name]


def quote_list(value: object) -> object:
    """A list would be read as a link; the host unwraps this."""
    return {"__value__": value} if isinstance(value, list) else value


def describe(node: Json) -> str:
    """A node as error messages name it."""
    return f"node {node['id']} ({node['type']})"


# --- widgets ---------------------------------------------------------------------------------------------------------


def widget_values(node: Json, info: Json) -> Json:
    """The node's widget values by input name; defaults for those the workflow does not have."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        values = {name: saved[name] for name, _, _ in widgets(node, info) if name in saved}
    else:
        values = assign_values(node, info, list(saved))
    for name, kind, options in widgets(node, info):
        if name not in values and "default" in options:
            values[name] = options["default"]
        elif name in values:
            check_value(node, name, kind, values[name])
    return values


def assign_values(node: Json, info: Json, saved: list[Any]) -> Json:
    """Give each saved value its name, skipping those of widgets that only the interface has."""
    values: Json = {}
    expected = list(widgets(node, info))
    for index, (name, kind, options) in enumerate(expected):
        if not saved:
            break
        values[name] = saved.pop(0)
        extras = extra_widgets(name, kind, options, saved, len(expected) - index - 1)
        del saved[:extras]
    return values


def extra_widgets(name: str, kind: object, options: Json, saved: list[Any], to_come: int) -> int:
    """How many of the next saved values belong to the interface: seed controls, upload buttons."""
    controlled = options.get("control_after_generate", kind == "INT" and name in SEED_NAMES)
    if controlled and saved and saved[0] in CONTROL_VALUES:
        # A combo also has a filter text beside its control.
        return 2 if is_combo(kind) and len(saved) - 2 >= to_come else 1
    if any(options.get(upload) for upload in UPLOADS):
        # One for the button, two for audio. None in workflows of interfaces that do not save it.
        return max(0, min(2 if options.get("audio_upload") else 1, len(saved) - to_come))
    return 0


def widgets(node: Json, info: Json) -> Iterator[tuple[str, object, Json]]:
    """Name, type and options of the node's inputs that have a widget, in the interface's order."""
    declared = {slot["widget"]["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
    for group in ("required", "optional"):
        for name, spec in (info.get("input", {}).get(group) or {}).items():
            kind = spec[0]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if (is_combo(kind) or kind in WIDGET_TYPES or name in declared) and not options.get("forceInput"):
                yield name, kind, options


def is_combo(kind: object) -> bool:
    """A choice among listed values; older nodes give the list itself as the type."""
    return isinstance(kind, list) or kind == "COMBO"


def check_value(node: Json, name: str, kind: object, value: object) -> None:
    """Notices values shifted by one place here, instead of by a puzzling error of the host."""
    allowed: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
    types = allowed.get(kind) if isinstance(kind, str) else None
    wrong = types and (not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"))
    if isinstance(kind, str) and wrong and value is not None:
        raise WorkflowError(
            f"{describe(node)}: the saved value of '{name}' is {value!r}, which is no {kind}. "
            "The workflow was saved with other inputs than this ComfyUI's node has."
        )


# --- links -----------------------------------------------------------------------------------------------------------


class Graph:
    """Nodes and links of a saved workflow."""

    def __init__(self, workflow: Json) -> None:
        self.nodes: dict[str, Json] = {str(node["id"]): node for node in workflow["nodes"]}
        self.links = dict(read_link(link) for link in workflow.get("links") or [])
        subgraphs = {definition["id"] for definition in (workflow.get("definitions") or {}).get("subgraphs", [])}
        for node in self.nodes.values():
            if node["type"] in subgraphs:
                raise WorkflowError(
                    f"node {node['id']} is a subgraph: unpack it in ComfyUI and save the workflow again."
                )

    def source(self, link_id: int | None) -> Link | Value | None:
        """Where a link's value really comes from, through reroutes and bypassed nodes. None: from nowhere."""
        seen = set()
        while link_id is not None:
            link = self.links.get(link_id)
            node = self.nodes.get(link.origin) if link else None
            if link is None or node is None:
                raise WorkflowError(f"link {link_id} is broken: the node it comes from is not in the workflow.")
            if link_id in seen:
                raise WorkflowError(f"link {link_id} leads in a circle.")
            seen.add(link_id)
            if node["type"] == "PrimitiveNode":
                return Value((node.get("widgets_values") or [None])[0])
            if node["type"] == "Reroute":
                link_id = input_link(node, 0)
            elif node.get("mode") == BYPASSED:
                link_id = input_link(node, bypass_slot(node, link))
            else:
                return None if node.get("mode") == MUTED else link
        return None


def read_link(link: list[Any] | Json) -> tuple[int, Link]:
    """[id, origin, slot, target, slot, type], or the same with names."""
    if isinstance(link, dict):
        return link["id"], Link(str(link["origin_id"]), int(link["origin_slot"]), str(link["type"]))
    return link[0], Link(str(link[1]), int(link[2]), str(link[5]))


def input_link(node: Json, slot: int | None) -> int | None:
    """Id of the link into a node's input, None if there is none."""
    inputs = node.get("inputs") or []
    link: int | None = inputs[slot].get("link") if slot is not None and slot < len(inputs) else None
    return link


def bypass_slot(node: Json, link: Link) -> int | None:
    """The input a bypassed node passes on as this output: the one beside it, else the first whose type agrees."""
    types = [str(slot["type"]) for slot in node.get("inputs") or []]
    output = str(node["outputs"][link.slot]["type"])
    if link.slot < len(types) and (types[link.slot] == output or "*" in (types[link.slot], output)):
        return link.slot
    return types.index(output) if output in types else None
