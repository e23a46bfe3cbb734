"""Writing shards, until something goes wrong and after it."""

import os
import random

import numpy as np
import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.training.data.sample import Sample, sample_key, to_record
from dynamicid_core.training.data.shards import SampleIndex, ShardWriter, read_samples

SETTINGS = {"made_by": "a test", "size": 16}
PEOPLE = {"anna": 2, "ben": 3, "nobody": 0, "cleo": 1, "dan": 2, "eve": 1}


def sample(name, number):
    vector = np.full(512, number, np.float32)
    return Sample(
        key=sample_key(name, number),
        identity=name,
        picture=np.full((16, 16, 3), 10 * number, np.uint8),
        caption=name,
        face_prompt="in a neutral expression, in front view",
        expression=None,
        pose=np.zeros(3, np.float32),
        keypoints=np.full((106, 2), 0.5, np.float32),
        embedding=vector,
        embedding_rgb=vector,
    )


def write(folder, before_each=lambda name: None):
    """Adds everybody who is not done yet."""
    with ShardWriter(folder, SETTINGS, shard_size=3) as writer:
        for name, count in PEOPLE.items():
            if name not in writer.done:
                before_each(name)
                samples = (sample(name, number) for number in range(count))
                writer.add(name, {one.key: to_record(one) for one in samples}, {"photos": count})
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set")


@pytest.mark.parametrize("last", list(PEOPLE))
def test_wherever_a_run_ends_the_next_one_makes_the_same_bytes(whole, tmp_path, last):
    def end(name):
        if name == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", end)
    assert not list((tmp_path / "set").glob("*.part")), "a shard is there whole or not at all"
    assert not (tmp_path / "set" / "index.json").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "set").glob("*.tar")}
    assert kept.items() <= contents(whole).items()
    assert contents(write(tmp_path / "set")) == contents(whole)


@pytest.mark.parametrize("call", range(4))
def test_a_disk_that_fills_up_at_any_shard_loses_none_before(whole, tmp_path, monkeypatch, call):
    """Each shard is forced to the disk twice: the tar file, then its line in the progress."""
    calls = 0

    def full(_):
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device\. Make room on that disk"):
        write(tmp_path / "set")
    monkeypatch.undo()
    assert not list((tmp_path / "set").glob("*.part"))
    done = len(ShardWriter(tmp_path / "set", SETTINGS, shard_size=3).progress.lines)
    assert done == call // 2
    assert contents(write(tmp_path / "set")) == contents(whole)


def test_a_shard_that_a_killed_run_left_unfinished_goes(whole, tmp_path):
    write(tmp_path / "set")
    (tmp_path / "set" / "train-000007.tar.part").write_bytes(b"half")
    assert contents(write(tmp_path / "set")) == contents(whole)


def test_other_settings_are_refused_by_name(tmp_path):
    before = contents(write(tmp_path / "set"))
    with pytest.raises(InputError, match=r"other settings: size 16 \(now 32\)\. Use those again"):
        ShardWriter(tmp_path / "set", {**SETTINGS, "size": 32}, shard_size=3)
    with pytest.raises(InputError, match=r"other settings: shard_size 3 \(now 4\)"):
        ShardWriter(tmp_path / "set", SETTINGS, shard_size=4)
    assert contents(tmp_path / "set") == before


def test_samples_are_the_same_in_order_and_on_their_own(whole):
    index = SampleIndex(whole)
    in_order = {one.key: one for one in read_samples(whole)}
    places = [place for places in index.people.values() for place in places]
    random.Random(0).shuffle(places)
    for shard, key in places:
        alone = index.read(shard, key)
        assert alone.identity == in_order[key].identity
        assert np.array_equal(alone.picture, in_order[key].picture)
        assert np.array_equal(alone.embedding, in_order[key].embedding)


def test_a_person_without_samples_is_done_and_not_in_the_index(whole):
    assert "nobody" in ShardWriter(whole, SETTINGS, shard_size=3).done
    assert list(SampleIndex(whole).people) == [name for name in PEOPLE if name != "nobody"]


def test_a_sample_that_is_not_there_is_named(whole):
    with pytest.raises(InputError, match=r"zoe_0000 in .* is damaged"):
        SampleIndex(whole).read("train-000000.tar", "zoe_0000")
