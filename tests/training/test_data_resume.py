"""The data set builder, interrupted and resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamicid_core.training.data.shards import SampleIndex, ShardWriter
from tests.training.builder import contents, faces, run, save_crowd, save_person

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("pack")


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path, monkeypatch):
    source = save_crowd(tmp_path / "photos", 5)
    assert run(source, tmp_path / "whole", "--size=64", "--shard-size=3") == 0
    add = ShardWriter.add

    def add_until_killed(writer, name, records, about):
        add(writer, name, records, about)
        if name == "person 2":
            raise RuntimeError("killed")

    monkeypatch.setattr(ShardWriter, "add", add_until_killed)
    monkeypatch.setattr(ShardWriter, "_abandon", lambda writer: None)
    with pytest.raises(RuntimeError, match="killed"):
        run(source, tmp_path / "set", "--size=64", "--shard-size=3")
    monkeypatch.undo()
    assert list((tmp_path / "set").glob("*.part")), "as a killed process leaves it"
    with open(tmp_path / "set" / "progress.jsonl", "ab") as file:
        file.write(b'{"shard": "train-0000')
    assert run(source, tmp_path / "set", "--size=64", "--shard-size=3") == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_ctrl_c_says_how_to_go_on_and_workers_make_the_same_shards(tmp_path, pack):
    source, out = save_crowd(tmp_path / "photos", 12), tmp_path / "set"
    settings = [f"--photos={source}", f"--out={out}", f"--pack={pack}", "--size=64", "--shard-size=1"]
    begun = subprocess.Popen(
        [sys.executable, "-m", "dynamicid_core.training.data", "build", *settings, "--workers=2", "--provider=CPU"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while begun.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130, said
    assert "The same command resumes from what is complete." in said
    assert "Traceback" not in said
    assert 0 < len(list(out.glob("*.tar"))) < 12
    assert run(source, out, "--size=64", "--shard-size=1") == 0
    assert run(source, tmp_path / "whole", "--size=64", "--shard-size=1") == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
def test_a_full_disk_loses_nothing(tmp_path, capsys):
    import resource

    source, out = save_crowd(tmp_path / "photos", 3), tmp_path / "set"
    assert run(source, out, "--size=64", "--shard-size=2") == 0
    whole = contents(out)
    size = len(whole["train-000000.tar"])
    shutil.rmtree(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, hard))
        assert run(source, out, "--size=64", "--shard-size=4") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Free some space on that disk" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["progress.jsonl"]
    shutil.rmtree(out)
    assert run(source, out, "--size=64", "--shard-size=2") == 0
    assert contents(out) == whole


def test_people_added_later_are_built_alone(tmp_path, capsys):
    source, out = save_crowd(tmp_path / "photos", 1), tmp_path / "set"
    assert run(source, out, "--size=64") == 0
    save_person(source, "a newcomer", faces()["hopper"])
    assert run(source, out, "--size=64") == 0
    assert list(SampleIndex(out).people) == ["person 0", "a newcomer"]
    assert "2 of 2 people" in capsys.readouterr().out


def test_after_a_pack_without_keypoints_a_whole_one_goes_on_in_the_same_folder(tmp_path, pack):
    save_person(tmp_path / "photos", "she", faces()["astronaut"])
    (tmp_path / "pack").mkdir()
    for pattern in ("scrfd*", "w600k*"):
        shutil.copy(next(pack.glob(pattern)), tmp_path / "pack")
    assert run(tmp_path / "photos", tmp_path / "set", "--size=64", pack=tmp_path / "pack") == 2
    assert run(tmp_path / "photos", tmp_path / "set", "--size=64") == 0
