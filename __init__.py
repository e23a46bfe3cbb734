"""DynamicID for ComfyUI: given people in pictures, from one photo each."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Called by ComfyUI, once, for the list of nodes."""
    from .nodes import DynamicIDExtension

    return DynamicIDExtension()
