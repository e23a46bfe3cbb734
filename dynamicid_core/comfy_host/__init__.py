"""The one package that knows ComfyUI: model folders, devices and memory, and the patch that puts SAA into its UNet.

Nothing here is global: a patched model carries its own patch, and the base model and its files stay as they were.
"""
