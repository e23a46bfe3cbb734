"""Samples on their way into shards and back, without photos or models."""

import json
import sys

import numpy as np
import pytest
import torch

from dynamicid_core.errors import InputError
from dynamicid_core.keypoints import raster
from dynamicid_core.training.data.sample import Sample, from_record, sample_key, to_record
from dynamicid_core.training.data.shards import SampleIndex, ShardWriter, read_samples


def sample(name, number, size=64):
    chance = np.random.default_rng([*name.encode(), number])
    smooth = np.linspace(0, 255, size)[:, None] * np.ones(size) * chance.uniform(0.3, 1)
    return Sample(
        key=sample_key(name, number),
        identity=name,
        picture=np.stack([smooth, smooth.T, 255 - smooth], axis=-1).astype(np.uint8),
        caption="a photo of a person with ü",
        face_prompt="in a happy expression, in front view",
        expression="happy",
        pose=chance.normal(size=3).astype(np.float32),
        keypoints=chance.uniform(0.1, 0.9, (106, 2)).astype(np.float32),
        embedding=chance.normal(size=512).astype(np.float32),
        embedding_rgb=chance.normal(size=512).astype(np.float32),
        labels={"actions": {"jawOpen": 0.5}},
    )


def write(folder, people=5, photos=3, shard_size=3):
    with ShardWriter(folder, {"made_by": "a test"}, shard_size=shard_size) as writer:
        for name in (f"person {i}" for i in range(people)):
            writer.add(name, {s.key: to_record(s) for s in (sample(name, n) for n in range(photos))}, {})
    return folder


def keys(samples):
    return [found.key for found in samples]


def test_a_sample_comes_back_from_its_record():
    before = sample("anna", 3)
    record = to_record(before)
    after = from_record({**record, "__key__": before.key, "__url__": "x.tar"})
    for name in ("pose", "keypoints", "embedding", "embedding_rgb"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    for name in ("key", "identity", "caption", "face_prompt", "expression", "labels"):
        assert getattr(before, name) == getattr(after, name), name
    assert np.abs(before.picture.astype(int) - after.picture).max() < 12, "JPEG at quality 95"
    assert set(record) == {"jpg", "json", "npy", "raster.png"}


def test_the_raster_in_a_record_is_the_encoders(tmp_path):
    from PIL import Image

    made = sample("anna", 1)
    (tmp_path / "raster.png").write_bytes(to_record(made)["raster.png"])
    pixels = np.array(Image.open(tmp_path / "raster.png"))
    assert torch.equal(torch.from_numpy(pixels), raster(torch.from_numpy(made.keypoints)))


@pytest.mark.parametrize("member", ["jpg", "json", "npy"])
@pytest.mark.parametrize("how", ["missing", "cut off"])
def test_a_damaged_record_is_named(member, how):
    record = {**to_record(sample("anna", 3)), "__key__": "anna_0003", "__url__": "train-000004.tar"}
    if how == "missing":
        del record[member]
    else:
        record[member] = record[member][: len(record[member]) // 2]
    with pytest.raises(InputError, match=r"anna_0003 in train-000004\.tar is damaged"):
        from_record(record)


def test_a_record_with_too_few_keypoints_is_damaged():
    record = to_record(sample("anna", 3))
    labels = json.loads(record["json"])
    record["json"] = json.dumps({**labels, "keypoints": labels["keypoints"][:68]}).encode()
    with pytest.raises(InputError, match=r"keypoints is not \[106, 2\] numbers"):
        from_record(record)


def test_keys_of_different_people_differ_and_suit_every_file_system():
    names = ["anna", "Anna B", "Anna-B", "anna.b", "李", "王", "x" * 200, "x" * 201, "a/b", "-"]
    made = [sample_key(name, 1) for name in names]
    assert len(set(made)) == len(names)
    assert all(key.isascii() and key.replace("-", "").replace("_", "").isalnum() and len(key) < 90 for key in made)
    assert sample_key("anna", 12) == "anna_0012"


def test_what_was_written_is_read_in_order(tmp_path):
    folder = write(tmp_path / "set")
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"train-{i:06d}.tar" for i in range(5)]
    assert keys(read_samples(folder)) == [sample_key(f"person {i}", n) for i in range(5) for n in range(3)]
    assert not list(folder.glob("*.part"))


def test_the_index_finds_every_photo_of_a_person(tmp_path):
    index = SampleIndex(write(tmp_path / "set", shard_size=7))
    assert list(index.people) == [f"person {i}" for i in range(5)]
    assert keys(index.samples("person 3")) == [sample_key("person 3", n) for n in range(3)]
    assert {found.identity for found in index.samples("person 3")} == {"person 3"}


def test_a_person_never_lies_in_two_shards(tmp_path):
    index = SampleIndex(write(tmp_path / "set", people=7, shard_size=4))
    assert all(len({shard for shard, _ in places}) == 1 for places in index.people.values())


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no index\.json: make a data set there first"):
        read_samples(tmp_path)


def test_an_unfinished_data_set_is_not_read(tmp_path):
    write(tmp_path / "set")
    (tmp_path / "set" / "index.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        read_samples(tmp_path / "set")


def test_a_truncated_shard_is_named(tmp_path):
    folder = write(tmp_path / "set")
    shard = folder / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        list(read_samples(folder))
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        SampleIndex(folder).samples("person 2")


def test_a_missing_shard_is_named(tmp_path):
    folder = write(tmp_path / "set")
    (folder / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar is missing"):
        ShardWriter(folder, {"made_by": "a test"}, shard_size=3)
    with pytest.raises(InputError, match=r"train-000001\.tar could not be read"):
        list(read_samples(folder))


def test_people_added_later_come_into_new_shards(tmp_path):
    folder = write(tmp_path / "set", people=2)
    write_more = ShardWriter(folder, {"made_by": "a test"}, shard_size=3)
    assert write_more.done == {"person 0", "person 1"}
    late = sample("late", 0)
    with write_more:
        write_more.add("late", {late.key: to_record(late)}, {})
    assert list(SampleIndex(folder).people) == ["person 0", "person 1", "late"]


def test_damaged_progress_is_named(tmp_path):
    folder = write(tmp_path / "set")
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    (folder / "progress.jsonl").write_text("".join([lines[0], "nonsense\n", *lines[2:]]))
    with pytest.raises(InputError, match=r"progress\.jsonl is damaged"):
        ShardWriter(folder, {"made_by": "a test"}, shard_size=3)


def test_a_machine_without_webdataset_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"webdataset.* pip install -r requirements-training\.txt"):
        ShardWriter(tmp_path / "set", {})
