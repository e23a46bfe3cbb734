"""transformers and ComfyUI import torchvision, which needs help on machines where it was built for another torch."""

from scripts.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
