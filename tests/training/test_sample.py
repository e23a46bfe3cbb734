"""A sample and its record: the round trip, and a message for each fault of a record."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.keypoints import rasterise
from dynamicid_core.training.data.sample import from_record, sample_key, to_record
from tests import photos
from tests.training.samples import sample


@pytest.fixture
def record():
    made = replace(sample("anna", 3), picture=photos.astronaut()[:256, 100:356])
    return {**to_record(made), "__key__": made.key, "__url__": "train-000004.tar"}


def with_labels(record, **labels):
    return {**record, "json": json.dumps({**json.loads(record["json"]), **labels}).encode()}


def with_embeddings(record, embeddings):
    content = io.BytesIO()
    np.save(content, embeddings)
    return {**record, "npy": content.getvalue()}


def with_picture(record, width, height):
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, format="JPEG")
    return {**record, "jpg": content.getvalue()}


def test_a_sample_without_an_expression_or_labels_comes_back():
    after = from_record(to_record(replace(sample("anna", 0), expression=None, labels={})))
    assert after.expression is None
    assert after.labels == {}


def test_a_sample_comes_back_from_its_record():
    before = sample("anna", 3, size=64)
    record = to_record(before)
    after = from_record({**record, "__key__": before.key, "__url__": "x.tar"})
    for name in ("pose", "keypoints", "embedding", "embedding_rgb"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    for name in ("key", "identity", "caption", "face_prompt", "expression", "labels"):
        assert getattr(before, name) == getattr(after, name), name
    assert np.abs(before.picture.astype(int) - after.picture).max() < 12, "JPEG at quality 95"
    assert set(record) == {"jpg", "json", "npy", "raster.png"}


def test_the_raster_in_a_record_is_the_encoders(tmp_path):
    made = sample("anna", 1)
    (tmp_path / "raster.png").write_bytes(to_record(made)["raster.png"])
    pixels = np.array(Image.open(tmp_path / "raster.png"))
    assert torch.equal(torch.from_numpy(pixels), rasterise(torch.from_numpy(made.keypoints)))


def test_keys_of_different_people_differ_and_suit_every_file_system():
    names = ["anna", "Anna B", "Anna-B", "anna.b", "李", "王", "x" * 200, "x" * 201, "a/b", "-"]
    made = [sample_key(name, 1) for name in names]
    assert len(set(made)) == len(names)
    assert all(key.isascii() and key.replace("-", "").replace("_", "").isalnum() and len(key) < 90 for key in made)
    assert sample_key("anna", 12) == "anna_0012"


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


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: with_labels(r, pose=[0, 0]), r"its pose is not \[3\] numbers"),
        (lambda r: with_labels(r, pose=[0, 0, float("nan")]), r"its pose is not \[3\] numbers"),
        (lambda r: with_labels(r, keypoints=[[0.5, 0.5]] * 68), r"its keypoints is not \[106, 2\] numbers"),
        (lambda r: with_labels(r, keypoints=[[0.5, float("inf")]] * 106), r"its keypoints is not \[106, 2\] numbers"),
        (lambda r: with_embeddings(r, np.ones((2, 256))), r"its embedding is not \[512\] numbers"),
        (lambda r: with_embeddings(r, np.ones(512)), "ValueError"),
        (lambda r: with_picture(r, 64, 48), "its picture is 64 x 48, not square"),
        (lambda r: {**r, "jpg": b"no picture"}, "UnidentifiedImageError"),
        (lambda r: {**r, "json": b"[]"}, "TypeError"),
        (lambda r: with_labels(r, shoe_size=38), "shoe_size"),
    ],
)
def test_each_fault_of_a_record_has_its_message(record, spoil, said):
    with pytest.raises(InputError, match=rf"anna_0003 in train-000004\.tar is damaged \(.*{said}"):
        from_record(spoil(record))


def test_an_embedding_that_is_not_numbers_is_damaged_in_either_colour_order():
    made = sample("anna", 0)
    record = to_record(made)
    made = replace(made, embedding_rgb=np.full(512, np.nan, np.float32))
    with pytest.raises(InputError, match="its embedding_rgb is not"):
        from_record({**record, "npy": to_record(made)["npy"]})


def test_a_broken_header_of_embeddings_is_damaged():
    record = to_record(sample("anna", 0))
    with pytest.raises(InputError, match="is damaged"):
        from_record({**record, "npy": record["npy"].replace(b"(2, 512), }", b"(2, 512    ")})


def test_other_members_of_a_record_are_ignored(record):
    assert from_record({**record, "mask.png": b"of another program"}).key == "anna_0003"


def test_a_photograph_in_a_record_still_looks_like_itself(record):
    picture = photos.astronaut()[:256, 100:356].astype(int)
    assert np.abs(from_record(record).picture - picture).mean() < 2


def test_a_picture_too_large_to_open_is_reported(record, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"train-000004\.tar is damaged \(DecompressionBombError"):
        from_record(record)
