"""Downloads from a real local server, which breaks off as configured."""

import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from dynamicid_core import downloads, face_packs
from dynamicid_core.errors import InputError
from tests.server import packed, serving

storage = pytest.importorskip("insightface.utils.storage", reason="insightface is not installed")


CONTENT = bytes(range(256)) * 20_000
PIECE = downloads._CHUNK_SIZE


class CancelledError(Exception):
    """Raised when the user cancels."""


def test_a_file_arrives_whole_and_its_progress_is_reported(tmp_path):
    progress = []
    with serving({"/a": CONTENT}) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "deep" / "a.zip", lambda *so_far: progress.append(so_far))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.zip"]
    assert (tmp_path / "deep" / "a.zip").read_bytes() == CONTENT
    assert len(progress) > 1
    assert progress[0] == (0, 0)
    assert progress == sorted(progress)
    assert progress[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_resumes_where_it_stopped(tmp_path):
    with serving({"/a": CONTENT}, cut=[3 * PIECE + 5, 0, PIECE]) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert len(server.asked) == 4
    assert server.asked[1] == server.asked[2] != server.asked[3]


def test_a_stopped_download_goes_on_the_next_time(tmp_path):
    def stop(done, whole):
        if done:
            raise CancelledError

    with serving({"/a": CONTENT}) as server:
        with pytest.raises(CancelledError):
            downloads.fetch(f"{server.url}/a", tmp_path / "a.zip", stop)
        assert not (tmp_path / "a.zip").exists()
        there = (tmp_path / "a.zip.part").stat().st_size
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert 0 < there < len(CONTENT)
    assert server.asked == [None, f"bytes={there}-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more", b"other" * 10])
def test_what_is_there_of_another_file_is_not_kept(tmp_path, there):
    (tmp_path / "a.zip.part").write_bytes(there)
    with serving({"/a": CONTENT}, ranges=there != b"other" * 10) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_server_that_continues_elsewhere_than_asked_is_asked_for_the_whole_file(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1000])
    with serving({"/a": CONTENT}) as server:
        server.skip = 5
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert server.asked == ["bytes=1000-", None]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_length_that_is_not_a_number_is_ignored(tmp_path):
    with serving({"/a": CONTENT}) as server:
        server.length = "many"
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_is_given_up(tmp_path):
    with serving({"/a": CONTENT}, cut=[PIECE] + [0] * 20) as server, pytest.raises(OSError, match="bro"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert len(server.asked) == 6
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:PIECE]


def test_a_server_that_always_restarts_and_breaks_off_is_given_up(tmp_path):
    cuts = [3 * PIECE, 2 * PIECE] * 20
    with serving({"/a": CONTENT}, cut=cuts, ranges=False) as server, pytest.raises(OSError, match="bro"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert len(server.asked) == 6


def test_cancel_is_seen_before_a_server_that_says_nothing_is_asked(tmp_path):
    def stop(done, whole):
        raise CancelledError

    with serving({"/a": CONTENT}) as server, pytest.raises(CancelledError):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip", stop)
    assert server.asked == []


def test_a_file_that_the_server_lacks_is_reported(tmp_path):
    with serving({}) as server, pytest.raises(InputError, match=r"/a answers 404"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pauses(monkeypatch):
    """Records the seconds to wait for busy servers, without waiting."""
    asked = []
    monkeypatch.setattr(downloads, "_wait", lambda seconds, ask: asked.append(seconds))
    return asked


def test_a_busy_server_is_left_alone_longer_each_time_or_as_long_as_it_asks_for(tmp_path, pauses):
    with serving({"/a": CONTENT}, refuse=[503, 500, 502]) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "a")
    with serving({"/a": CONTENT}, refuse=[429, 429], retry_after="7") as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "b")
    with serving({"/a": CONTENT}, refuse=[429], retry_after="3600") as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "c")
    assert pauses == [2, 4, 8, 7, 7, 30]


def test_cancel_ends_the_wait_for_a_busy_server(tmp_path):
    def cancel(done, whole):
        if server.asked:
            raise KeyboardInterrupt

    with serving({"/a": CONTENT}, refuse=[503]) as server, pytest.raises(KeyboardInterrupt):
        downloads.fetch(f"{server.url}/a", tmp_path / "a", cancel)
    assert len(server.asked) == 1


def test_waiting_takes_the_time_and_asks_meanwhile():
    asked, begun = [], time.monotonic()
    downloads._wait(0.05, lambda: asked.append(1))
    assert time.monotonic() - begun >= 0.05
    assert asked


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("refused", [[429, 503], [500, 502, 504, 429]])
def test_a_server_that_is_busy_is_asked_again(tmp_path, refused):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:PIECE])
    with serving({"/a": CONTENT}, refuse=refused) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.asked == [f"bytes={PIECE}-"] * (len(refused) + 1)


@pytest.mark.usefixtures("pauses")
def test_a_server_that_stays_busy_is_given_up(tmp_path):
    with serving({"/a": CONTENT}, refuse=[503] * 20) as server, pytest.raises(OSError, match="/a answers 503"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert len(server.asked) == 5


def test_a_login_page_in_the_place_of_a_file_costs_nothing_that_is_there(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:PIECE])
    page = {"ranges": False, "content_type": "text/html; charset=utf-8"}
    with serving({"/a": b"<html>Log in"}, **page) as server, pytest.raises(InputError, match="answers with a web page"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:PIECE]


def test_what_is_there_may_be_gone_when_the_server_has_less(tmp_path):
    unfinished = tmp_path / "a.zip.part"
    unfinished.write_bytes(CONTENT + b"more")

    class TidiedFiles(dict):
        def get(self, path):
            unfinished.unlink(missing_ok=True)
            return super().get(path)

    with serving(TidiedFiles({"/a": CONTENT})) as server:
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_server_that_refuses_a_range_nobody_asked_for_is_reported(tmp_path):
    with serving({"/a": b""}) as server, pytest.raises(InputError, match="/a answers 416"):
        downloads.fetch(f"{server.url}/a", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def release(monkeypatch):
    """InsightFace's release page, served locally."""
    with serving({}) as server:
        monkeypatch.setattr(storage, "BASE_REPO_URL", server.url)
        yield server


def test_a_pack_is_unpacked_and_its_archive_is_not_kept(release, tmp_path):
    release.files["/antelopev2.zip"] = packed(
        "antelopev2/det.onnx", "antelopev2/rec.onnx", "antelopev2/readme.txt", "__MACOSX/antelopev2/._det.onnx"
    )
    folder = face_packs.download_pack("antelopev2", tmp_path)
    assert face_packs.find_packs([tmp_path]) == {"antelopev2": folder}
    assert {file.name for file in folder.iterdir()} == {"det.onnx", "rec.onnx"}
    assert list(folder.parent.iterdir()) == [folder]


def test_an_archive_that_is_there_is_unpacked_without_the_internet(release, tmp_path):
    archive = tmp_path / "models" / "buffalo_s.zip"
    archive.parent.mkdir()
    archive.write_bytes(packed("det.onnx"))
    folder = face_packs.download_pack("buffalo_s", tmp_path)
    assert (folder / "det.onnx").read_text() == "weights of det.onnx"
    assert archive.is_file()
    assert release.asked == []


def test_an_empty_folder_that_a_download_left_is_filled(release, tmp_path):
    release.files["/buffalo_s.zip"] = packed("det.onnx")
    (tmp_path / "models" / "buffalo_s").mkdir(parents=True)
    (tmp_path / "models" / "buffalo_s.unpacking").mkdir()
    (tmp_path / "models" / "buffalo_s.unpacking" / "half.onnx").write_text("of a download that was ended")
    assert face_packs.find_packs([tmp_path]) == {}
    folder = face_packs.download_pack("buffalo_s", tmp_path)
    assert [file.name for file in folder.iterdir()] == ["det.onnx"]
    assert list(folder.parent.iterdir()) == [folder]


def badly_named():
    """An archive whose directory says that names are UTF-8, and has one that is not."""
    sent = bytearray(packed("det.onnx"))
    start = sent.index(b"PK\1\2")
    sent[start + 9] |= 0x08
    sent[start + 46] = 0xFF
    return bytes(sent)


@pytest.mark.parametrize("sent", [b"<html>Please log in to this network</html>", packed("readme.txt"), badly_named()])
def test_what_is_no_pack_is_reported_and_fetched_again_the_next_time(release, tmp_path, sent):
    release.files["/buffalo_s.zip"] = sent
    with pytest.raises(InputError, match=r"buffalo_s.zip is damaged .* run again"):
        face_packs.download_pack("buffalo_s", tmp_path)
    release.files["/buffalo_s.zip"] = packed("det.onnx")
    assert (face_packs.download_pack("buffalo_s", tmp_path) / "det.onnx").is_file()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [(8, 99, "compression method"), (6, 1, "encrypted")],
    ids=["a compression that Python lacks", "a password"],
)
def test_an_archive_that_cannot_be_unpacked_here_is_reported(release, tmp_path, where, value, message):
    sent = bytearray(packed("det.onnx"))
    for signature, start in ((b"PK\3\4", where), (b"PK\1\2", where + 2)):
        sent[sent.index(signature) + start] = value
    release.files["/buffalo_s.zip"] = bytes(sent)
    with pytest.raises(InputError, match=rf"buffalo_s.zip is damaged \(.*{message}.*run again"):
        face_packs.download_pack("buffalo_s", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_an_archive_that_ends_too_early_is_reported(release, tmp_path):
    whole = bytearray(packed("det.onnx"))
    entry = whole.index(b"PK\1\2")
    for size in (20, 24):  # packed and unpacked; the archive has fewer bytes
        whole[entry + size : entry + size + 4] = (100_000).to_bytes(4, "little")
    release.files["/buffalo_s.zip"] = bytes(whole)
    with pytest.raises(InputError, match=r"buffalo_s.zip is damaged .*run again"):
        face_packs.download_pack("buffalo_s", tmp_path)


def test_a_disk_that_is_full_while_unpacking_costs_no_second_download(release, tmp_path, monkeypatch):
    release.files["/buffalo_s.zip"] = packed("det.onnx")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        with pytest.raises(InputError, match="No space left on device"):
            face_packs.download_pack("buffalo_s", tmp_path)
    folder = face_packs.download_pack("buffalo_s", tmp_path)
    assert list(folder.parent.iterdir()) == [folder]
    assert len(release.asked) == 1


@pytest.mark.parametrize("there", [(), ("readme.txt",)], ids=["no folder", "another file"])
@pytest.mark.parametrize("error", [PermissionError(13, "The process cannot access the file"), KeyboardInterrupt()])
def test_a_pack_that_could_not_be_put_in_its_place_is_none_and_costs_no_second_download(
    release, tmp_path, monkeypatch, there, error
):
    release.files["/buffalo_s.zip"] = packed("det.onnx", "rec.onnx")
    folder = tmp_path / "models" / "buffalo_s"
    for name in there:
        folder.mkdir(parents=True)
        (folder / name).touch()

    def refusing(move):
        def refuse(what, where):
            if Path(where) in (folder, folder / "rec.onnx"):
                raise error
            return move(what, where)

        return refuse

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing(os.replace))
        patch.setattr(shutil, "move", refusing(shutil.move))
        with pytest.raises((InputError, KeyboardInterrupt)):
            face_packs.download_pack("buffalo_s", tmp_path)
    assert face_packs.find_packs([tmp_path]) == {}
    face_packs.download_pack("buffalo_s", tmp_path)
    assert {file.name for file in folder.iterdir()} == {"det.onnx", "rec.onnx", *there}
    assert list(folder.parent.iterdir()) == [folder]
    assert len(release.asked) == 1


def test_a_folder_that_is_a_link_to_another_disk_is_filled(release, tmp_path):
    release.files["/buffalo_s.zip"] = packed("det.onnx")
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").mkdir()
    try:
        (tmp_path / "models" / "buffalo_s").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError as error:  # Windows requires a privilege for it
        pytest.skip(f"no links can be made here: {error}")
    face_packs.download_pack("buffalo_s", tmp_path)
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["det.onnx"]


def test_a_pack_that_cannot_be_had_says_what_to_do_by_hand(release, tmp_path):
    with pytest.raises(InputError, match=r"could not be downloaded .* put it into") as progress:
        face_packs.download_pack("buffalo_s", tmp_path)
    assert str(tmp_path / "models") in str(progress.value)
    assert face_packs.find_packs([tmp_path]) == {}


def test_without_a_network_the_same_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "BASE_REPO_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="could not be downloaded"):
        face_packs.download_pack("buffalo_s", tmp_path)
