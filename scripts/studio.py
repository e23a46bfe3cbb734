"""Build graphs on the miniature, run them, and get their pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import third_party
from demo import PORTRAIT, fetch_images
from host_server import HostServer, Prompt
from on_miniature import MINIATURE, SAMPLING
from workflow import widget_values

if TYPE_CHECKING:
    from PIL import Image

Link = list[Any]
"""A node's output, as an input of another one: [node, number of the output]."""


class Studio:
    """A running ComfyUI, and the graph that is being built for it."""

    def __init__(self, server: HostServer) -> None:
        self.server = server
        self.info = server.object_info()
        self.start()

    def start(self) -> None:
        """A new graph, which contains the loaders."""
        self.prompt: Prompt = {}
        self.miniature = self.add(MINIATURE)
        self.face_analysis = self.add("DynamicIDFaceAnalysisLoader", pack=third_party.INSIGHTFACE_PACK)

    def add(self, kind: str, **inputs: object) -> str:
        """A new node. Inputs that are not given get their defaults."""
        node = str(len(self.prompt))
        values = widget_values({"id": node, "type": kind}, self.info[kind])
        self.prompt[node] = {"class_type": kind, "inputs": {**values, **inputs}}
        return node

    def preview(self, images: Link) -> str:
        """A node that shows pictures."""
        return self.add("PreviewImage", images=images)

    def run(self) -> dict[str, Any]:
        """Runs the graph, and begins a new one. Returns its history entry."""
        history = self.server.queue(self.prompt)
        self.start()
        return history

    def pictures(self, *previews: str) -> list[Image.Image]:
        """Runs the graph, and begins a new one. Returns the pictures of some of its nodes, in order."""
        history = self.run()
        return [picture for node in previews for picture in fetch_images(self.server, history, node)]

    # --- parts of graphs ---------------------------------------------------------------------------------------------

    def photo(self, name: str) -> Link:
        """A photograph from the folder input."""
        return [self.add("LoadImage", image=name), 0]

    def encoded(self, image: Link) -> str:
        """Encode Face."""
        return self.add(
            "DynamicIDEncodeFace",
            image=image, dynamicid=[self.miniature, 4], face_analysis=[self.face_analysis, 0],
            clip_vision=[self.miniature, 3],
        )  # fmt: skip

    def keypoints(self, image: Link) -> str:
        """Face Keypoints."""
        return self.add("DynamicIDFaceKeypoints", image=image, face_analysis=[self.face_analysis, 0])

    def edited(self, face: Link, prompt: str, **inputs: object) -> Link:
        """A face with another expression or pose."""
        clip, adapter = [self.miniature, 1], [self.miniature, 4]
        node = self.add("DynamicIDEditFace", face=face, dynamicid=adapter, clip=clip, target_prompt=prompt, **inputs)
        return [node, 0]

    def generated(self, faces: Link, text: str = PORTRAIT, size: tuple[int, int] = (128, 144)) -> tuple[str, str, str]:
        """A picture of these people. Returns Apply DynamicID, the sampler and the decoder."""
        model, clip, vae, _, adapter = ([self.miniature, output] for output in range(5))
        positive, negative = (self.add("CLIPTextEncode", clip=clip, text=words) for words in (text, ""))
        applied = self.add(
            "DynamicIDApply",
            model=model, positive=[positive, 0], negative=[negative, 0], dynamicid=adapter, faces=faces,
        )  # fmt: skip
        latent = self.add("EmptyLatentImage", width=size[0], height=size[1])
        sampler = self.add(
            "KSampler",
            model=[applied, 0], positive=[applied, 1], negative=[applied, 2], latent_image=[latent, 0],
            **{**SAMPLING, "seed": 1},
        )  # fmt: skip
        return applied, sampler, self.add("VAEDecode", samples=[sampler, 0], vae=vae)
