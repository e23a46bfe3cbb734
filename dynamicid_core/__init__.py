"""The engine of DynamicID: pure torch and numpy, without ComfyUI except in ``comfy_host``."""
