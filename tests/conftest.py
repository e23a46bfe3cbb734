"""What the tests need of the process they run in."""

import signal

from scripts.torchvision_shim import make_torchvision_importable

# transformers and ComfyUI import torchvision, which needs help on machines where it was built for another torch.
make_torchvision_importable()

# A shell without job control starts what is to run in the background without Ctrl-C, and commands would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
