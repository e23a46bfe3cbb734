"""Several processes that download one InsightFace pack: one does, the others wait."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynamicid_core import face_packs
from dynamicid_core.face_packs import pack_models
from tests.server import packed, serving

_OTHER_PROCESS = """
import sys
from insightface.utils import storage
from dynamicid_core.face_packs import download_pack

def report(done, total):
    if done:
        print("downloading", flush=True)
        sys.stdin.readline()

storage.BASE_REPO_URL = sys.argv[1]
print(download_pack("buffalo_s", sys.argv[2], report))
"""


@contextmanager
def downloading_elsewhere(server, folder):
    """Another process, in the middle of a download. It goes on when its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, server.url, folder],
        cwd=Path(face_packs.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        while "downloading" not in (line := other.stdout.readline()):
            assert line
        try:
            yield other
        finally:
            other.kill()


@pytest.fixture
def pack_server(monkeypatch):
    from insightface.utils import storage

    with serving({"/buffalo_s.zip": packed("det.onnx", "rec.onnx")}) as server:
        monkeypatch.setattr(storage, "BASE_REPO_URL", server.url)
        yield server


def test_two_processes_download_a_pack_once(tmp_path, pack_server):
    with downloading_elsewhere(pack_server, tmp_path) as other:
        folder = face_packs.download_pack(
            "buffalo_s", tmp_path, lambda done, total: other.stdin.closed or other.stdin.close()
        )
        assert other.stdout.read().endswith(f"{folder}\n")
    assert [file.name for file in pack_models(folder)] == ["det.onnx", "rec.onnx"]
    assert pack_server.asked == [None]


def test_waiting_for_the_download_of_another_process_can_be_cancelled(tmp_path, pack_server):
    def cancel(done, total):
        raise KeyboardInterrupt

    with downloading_elsewhere(pack_server, tmp_path) as other:
        with pytest.raises(KeyboardInterrupt):
            face_packs.download_pack("buffalo_s", tmp_path, cancel)
        other.stdin.close()
        folder = Path(other.stdout.read().splitlines()[-1])
    assert [file.name for file in pack_models(folder)] == ["det.onnx", "rec.onnx"]
    assert pack_server.asked == [None]


def test_a_download_goes_on_when_the_process_that_began_it_is_killed(tmp_path, pack_server):
    with downloading_elsewhere(pack_server, tmp_path) as other:
        folder = face_packs.download_pack("buffalo_s", tmp_path, lambda done, total: other.kill())
    assert [file.name for file in pack_models(folder)] == ["det.onnx", "rec.onnx"]
    assert len(pack_server.asked) == 2
