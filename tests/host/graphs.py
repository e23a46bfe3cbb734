"""Whole graphs through ComfyUI's own executor, with tiny models in place of files."""

import asyncio
import inspect
import json
import logging
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import execution
import nodes as host_nodes
import torch
from comfy_api.latest import io

from scripts.workflow import to_api
from tests.host.helpers import fill, tiny_clip_vision, tiny_unet

WORKFLOWS = Path(__file__).parents[2] / "workflows"


def tiny_clip(hidden=64):
    """The host's SD1.5 text encoder, three layers of the golden UNet's context size, with seeded weights."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": 4, "num_hidden_layers": 3}
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": sizes})
    fill(clip.cond_stage_model)
    return clip


def tiny_vae():
    weights = fill(comfy.taesd.taesd.TAESD(latent_channels=4)).state_dict()
    return comfy.sd.VAE(sd={**weights, "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)})


class TinyCheckpoint:
    """Replaces CheckpointLoaderSimple in test graphs: tiny models of the host's own classes."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"ckpt_name": ("STRING", {})}}

    def load(self, ckpt_name):
        return tiny_unet(), tiny_clip(), tiny_vae()


class TinyClipVision:
    """Replaces CLIPVisionLoader in test graphs."""

    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"clip_name": ("STRING", {})}}

    def load(self, clip_name):
        return (tiny_clip_vision(),)


class CaptureImages:
    """Replaces SaveImage: captures its images."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"
    captured: list = []  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {})}}

    def keep(self, images, filename_prefix):
        self.captured.append(images)
        return {}


STAND_INS = {"CheckpointLoaderSimple": TinyCheckpoint, "CLIPVisionLoader": TinyClipVision, "SaveImage": CaptureImages}
host_nodes.NODE_CLASS_MAPPINGS.update({f"Test{name}": cls for name, cls in STAND_INS.items()})


def object_info():
    """What the server's /object_info says of every node."""
    info = {}
    for name, cls in host_nodes.NODE_CLASS_MAPPINGS.items():
        if issubclass(cls, io.ComfyNode):
            v1 = cls.GET_NODE_INFO_V1()
            info[name] = {"input": v1["input"], "input_order": v1["input_order"], "output": v1["output"]}
        else:
            inputs = cls.INPUT_TYPES()
            info[name] = {
                "input": inputs,
                "input_order": {group: list(values) for group, values in inputs.items()},
                "output": list(cls.RETURN_TYPES),
            }
    return info


def shipped(name):
    """A shipped workflow as in the repository, in the interface's format."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api_form(workflow, **inputs_by_node):
    """The API format of a workflow, with the stand-ins. inputs_by_node: node type -> inputs to change."""
    prompt = to_api(workflow, object_info())
    for node in prompt.values():
        node["inputs"].update(inputs_by_node.get(node["class_type"], {}))
        if node["class_type"] in STAND_INS:
            node["class_type"] = f"Test{node['class_type']}"
    return prompt


class Server:
    """The parts of a server that the executor needs."""

    client_id = last_node_id = last_prompt_id = None

    def __init__(self):
        self.sockets_metadata = {}
        self.ran, self.errors = [], []

    def send_sync(self, event, data, sid=None):
        if event == "executing" and data.get("node"):
            self.ran.append(data["node"])
        if event == "execution_error":
            self.errors.append(data)


class AnyType(str):
    """A type that matches every other, as in packs with nodes for choices."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __ne__(self, other):
        return False


class ListName:
    """Outputs a name for an input that lists files."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"name": ("STRING", {})}}

    def give(self, name):
        return (name,)


class Executor:
    """ComfyUI's prompt executor with its cache of node outputs."""

    def __init__(self):
        self.server = Server()
        self.server.client_id = "test"
        takes = inspect.signature(execution.PromptExecutor).parameters
        cache = {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}} if "cache_args" in takes else {"cache_size": 0}
        self.executor = execution.PromptExecutor(self.server, cache_type=execution.CacheType.CLASSIC, **cache)

    def run(self, prompt):
        """Runs a graph; returns what SaveImage would have saved. Raises ValueError with the host's message."""
        CaptureImages.captured.clear()
        self.server.ran.clear()
        valid = asyncio.run(execution.validate_prompt("test", prompt, None))
        if not valid[0]:
            details = [error["details"] for one in valid[3].values() for error in one["errors"]]
            raise ValueError("; ".join(details) or str(valid))
        logging.disable(logging.ERROR)  # the host logs a failing node's whole trace; the error below says it
        try:
            self.executor.execute(prompt, "test", {"client_id": "test"}, valid[2])
        finally:
            logging.disable(logging.NOTSET)
        if not self.executor.success:
            raise ValueError(self.server.errors[-1]["exception_message"])
        return list(CaptureImages.captured)
