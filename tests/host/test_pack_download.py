"""An InsightFace pack that Load Face Analysis downloads, from a local server."""

import io
import os
import shutil
import zipfile
from copy import deepcopy

import comfy.model_management
import comfy.utils
import nodes as host_nodes
import pytest

from tests.host.graphs import Executor, ListName
from tests.host.helpers import run
from tests.server import serving


@pytest.fixture
def release(monkeypatch, models, pack):
    """InsightFace's release page, with the real models."""
    from insightface.utils import storage

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for model in pack.glob("*.onnx"):
            archive.write(model, model.name)
    with serving({"/antelopev2.zip": file.getvalue()}) as server:
        monkeypatch.setattr(storage, "BASE_REPO_URL", server.url)
        yield server
    shutil.rmtree(models / "insightface" / "models" / "antelopev2", ignore_errors=True)


@pytest.mark.parametrize("name", ["antelopev2", ["0", 0]], ids=["chosen", "by a link"])
def test_what_was_done_with_a_pack_that_was_downloaded_is_not_done_again(release, models, monkeypatch, name):
    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "TestListName", ListName)
    inputs = {"pack": name, "provider": "CPU", "detection_size": 640}
    prompt = {
        "0": {"class_type": "TestListName", "inputs": {"name": "antelopev2"}},
        "1": {"class_type": "DynamicIDFaceAnalysisLoader", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    executor, ran = Executor(), []
    for turn in range(4):
        if turn == 2:
            file = next((models / "insightface" / "models" / "antelopev2").glob("*.onnx"))
            os.utime(file, (2, 2))
        executor.run(deepcopy(prompt))  # the host keeps in it what it found
        ran.append("1" in executor.server.ran)
    assert ran == [True, False, True, False]


def test_cancel_stops_a_download_which_goes_on_the_next_time(release, models, monkeypatch):
    shown = []

    def show(done, whole, *_, **__):
        shown.append((done, whole))
        if len(shown) == 3:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", show)
    size = len(release.files["/antelopev2.zip"])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("DynamicIDFaceAnalysisLoader", pack="antelopev2", provider="CPU")
    assert [whole for _, whole in shown] == [size] * 3
    analysis = run("DynamicIDFaceAnalysisLoader", pack="antelopev2", provider="CPU")[0]
    assert analysis.recognition == "w600k_mbf"
    assert release.asked[0] is None
    assert release.asked[1] != "bytes=0-"
    assert shown[-1] == (size, size)
    folder = models / "insightface" / "models"
    assert not list(folder.glob("*antelopev2.*"))
    assert (folder / "antelopev2").is_dir()
