"""Writing and reading shards, also when something goes wrong."""

import json
import os
import random
import sys
import tarfile

import numpy as np
import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.training.data.sample import sample_key, to_record
from dynamicid_core.training.data.shards import SampleIndex, ShardWriter, read_samples
from tests.training.samples import SETTINGS, keys, sample, write

FIVE = {f"person {i}": 3 for i in range(5)}
PEOPLE = {"anna": 2, "ben": 3, "nobody": 0, "cleo": 1, "dan": 2, "eve": 1}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set", PEOPLE)


def test_what_was_written_is_read_in_order(tmp_path):
    folder = write(tmp_path / "set", FIVE)
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"train-{i:06d}.tar" for i in range(5)]
    assert keys(read_samples(folder)) == [sample_key(f"person {i}", n) for i in range(5) for n in range(3)]
    assert not list(folder.glob("*.part"))


def test_the_index_finds_every_photo_of_a_person(tmp_path):
    index = SampleIndex(write(tmp_path / "set", FIVE, shard_size=7))
    assert list(index.people) == [f"person {i}" for i in range(5)]
    assert keys(index.samples("person 3")) == [sample_key("person 3", n) for n in range(3)]
    assert {found.identity for found in index.samples("person 3")} == {"person 3"}


def test_a_person_never_lies_in_two_shards(tmp_path):
    index = SampleIndex(write(tmp_path / "set", {f"person {i}": 3 for i in range(7)}, shard_size=4))
    assert all(len({shard for shard, _ in places}) == 1 for places in index.people.values())


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no index\.json: make a data set there first"):
        read_samples(tmp_path)


def test_an_unfinished_data_set_is_not_read(tmp_path):
    write(tmp_path / "set", FIVE)
    (tmp_path / "set" / "index.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        read_samples(tmp_path / "set")


def test_a_truncated_shard_is_named(tmp_path):
    folder = write(tmp_path / "set", FIVE)
    shard = folder / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        list(read_samples(folder))
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        SampleIndex(folder).samples("person 2")


def test_a_missing_shard_is_named(tmp_path):
    folder = write(tmp_path / "set", FIVE)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar is missing"):
        ShardWriter(folder, SETTINGS, shard_size=3)
    with pytest.raises(InputError, match=r"train-000001\.tar could not be read"):
        list(read_samples(folder))


def test_people_added_later_come_into_new_shards(tmp_path):
    folder = write(tmp_path / "set", {"person 0": 3, "person 1": 3})
    write_more = ShardWriter(folder, SETTINGS, shard_size=3)
    assert write_more.done == {"person 0", "person 1"}
    late = sample("late", 0)
    with write_more:
        write_more.add("late", {late.key: to_record(late)}, {})
    assert list(SampleIndex(folder).people) == ["person 0", "person 1", "late"]


def test_damaged_progress_is_named(tmp_path):
    folder = write(tmp_path / "set", FIVE)
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    (folder / "progress.jsonl").write_text("".join([lines[0], "nonsense\n", *lines[2:]]))
    with pytest.raises(InputError, match=r"progress\.jsonl is damaged"):
        ShardWriter(folder, SETTINGS, shard_size=3)


def test_a_machine_without_webdataset_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"webdataset.* pip install -r requirements-training\.txt"):
        ShardWriter(tmp_path / "set", {})


@pytest.mark.parametrize("last", list(PEOPLE))
def test_wherever_a_run_ends_the_next_one_makes_the_same_bytes(whole, tmp_path, last):
    def end(name):
        if name == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", PEOPLE, before_each=end)
    assert not list((tmp_path / "set").glob("*.part")), "a shard is there whole or not at all"
    assert not (tmp_path / "set" / "index.json").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "set").glob("*.tar")}
    assert kept.items() <= contents(whole).items()
    assert contents(write(tmp_path / "set", PEOPLE)) == contents(whole)


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
    with pytest.raises(InputError, match=r"No space left on device\. Free some space on that disk"):
        write(tmp_path / "set", PEOPLE)
    monkeypatch.undo()
    assert not list((tmp_path / "set").glob("*.part"))
    done = len(ShardWriter(tmp_path / "set", SETTINGS, shard_size=3).progress.lines)
    assert done == call // 2
    assert contents(write(tmp_path / "set", PEOPLE)) == contents(whole)


def test_a_shard_that_a_killed_run_left_unfinished_goes(whole, tmp_path):
    write(tmp_path / "set", PEOPLE)
    (tmp_path / "set" / "train-000007.tar.part").write_bytes(b"half")
    assert contents(write(tmp_path / "set", PEOPLE)) == contents(whole)


def test_other_settings_are_refused_by_name(tmp_path):
    before = contents(write(tmp_path / "set", PEOPLE))
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


def test_a_shard_cut_off_between_two_samples_is_named(tmp_path):
    shard = write(tmp_path / "set", PEOPLE) / "train-000000.tar"
    with tarfile.open(shard) as tar:
        second = next(info.offset for info in tar if info.name.startswith("anna_0001"))
    shard.write_bytes(shard.read_bytes()[:second])
    with pytest.raises(InputError, match=r"train-000000\.tar could not be read \(it is cut off\)"):
        list(read_samples(tmp_path / "set"))


def test_a_run_killed_while_it_began_can_be_given_again(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "progress.jsonl.part").write_bytes(b"{")
    assert write(tmp_path / "set", PEOPLE).joinpath("index.json").is_file()


def test_settings_may_change_while_nothing_is_made(tmp_path):
    ShardWriter(tmp_path / "set", {**SETTINGS, "size": 8}, shard_size=3)
    assert write(tmp_path / "set", PEOPLE).joinpath("index.json").is_file()


@pytest.mark.parametrize(
    "index", [{"shards": [5], "people": {}}, {"shards": [], "people": {"anna": [[5, "a"]]}}], ids=["shards", "people"]
)
def test_an_index_with_names_that_are_not_text_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match=r"index\.json is damaged \(5 is not the name of a shard or a sample"):
        SampleIndex(tmp_path)
