"""The only package that depends on ComfyUI: model folders, devices and memory, and the patch for SAA in its UNet.

Nothing here is global: a patched model has its own patch, and the base model and its files are not changed.
"""
