"""DynamicID for ComfyUI: given people in pictures, from one photo each."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    from .nodes import DynamicIDExtension

    return DynamicIDExtension()
