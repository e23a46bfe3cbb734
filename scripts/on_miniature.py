"""Run any of the workflows on the miniature, the small model that comes with the pack."""

from __future__ import annotations

from host_server import Prompt
from repository import ROOT
from workflow import WorkflowError

PEOPLE = tuple(ROOT / "dynamicid_core" / "data" / "miniature" / "photos" / f"person_{i}.jpg" for i in (1, 2))
"""Photos of rendered people."""
MINIATURE = "DynamicIDMiniatureLoader"
# Loaders that the miniature replaces -> the outputs of the miniature for each of their outputs.
REPLACED = {"CheckpointLoaderSimple": (0, 1, 2), "CLIPVisionLoader": (3,), "DynamicIDLoader": (4,)}
SAMPLING = {"steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}


def use_miniature(prompt: Prompt) -> None:
    """Replaces the loaders with Load Miniature; all other nodes stay the same."""
    outputs = {
        node: REPLACED[content["class_type"]] for node, content in prompt.items() if content["class_type"] in REPLACED
    }
    for node in outputs:
        del prompt[node]
    for content in prompt.values():
        for name, value in content["inputs"].items():
            if isinstance(value, list) and value[0] in outputs:
                content["inputs"][name] = ["miniature", outputs[value[0]][value[1]]]
    if outputs:
        prompt["miniature"] = {"class_type": MINIATURE, "inputs": {}}


def ask_miniature(prompt: Prompt, text: str, size: tuple[int, int]) -> None:
    """Sets the inputs that differ for the miniature. text: in its own few words. size: width, height."""
    set_inputs(prompt, "KSampler", **SAMPLING)
    set_inputs(prompt, "EmptyLatentImage", width=size[0], height=size[1])
    set_text(prompt, "positive", text)
    set_text(prompt, "negative", "")


def nodes_of(prompt: Prompt, kind: str) -> list[str]:
    """Ids of the nodes of one kind."""
    return [node for node, content in prompt.items() if content["class_type"] == kind]


def the_node(prompt: Prompt, kind: str) -> str:
    """Id of the first node of a kind that the workflow must have."""
    found = nodes_of(prompt, kind)
    if not found:
        raise WorkflowError(f"The workflow has no {kind}.")
    return found[0]


def set_inputs(prompt: Prompt, kind: str, **values: object) -> None:
    """Sets values of the first node of a kind."""
    prompt[the_node(prompt, kind)]["inputs"].update(values)


def set_text(prompt: Prompt, side: str, text: str) -> None:
    """Sets the positive or the negative prompt."""
    prompt[prompt[the_node(prompt, "DynamicIDApply")]["inputs"][side][0]]["inputs"]["text"] = text
