"""What is wrong with a sample's record is said, one message for each fault."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.training.data.sample import Sample, from_record, sample_key, to_record
from tests import photos


@pytest.fixture
def record():
    chance = np.random.default_rng(0)
    made = Sample(
        key=sample_key("anna", 3),
        identity="anna",
        picture=photos.astronaut()[:256, 100:356],
        caption="a photo of a person",
        face_prompt="in a happy expression, in front view",
        expression="happy",
        pose=np.array([1, 2, 3], np.float32),
        keypoints=chance.uniform(0.1, 0.9, (106, 2)).astype(np.float32),
        embedding=chance.normal(size=512).astype(np.float32),
        embedding_rgb=chance.normal(size=512).astype(np.float32),
    )
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


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: with_labels(r, pose=[0, 0]), r"its pose is not \[3\] numbers"),
        (lambda r: with_labels(r, pose=[0, 0, float("nan")]), r"its pose is not \[3\] numbers"),
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


def test_other_members_of_a_record_are_ignored(record):
    assert from_record({**record, "mask.png": b"of another program"}).key == "anna_0003"


def test_a_photograph_in_a_record_still_looks_like_itself(record):
    picture = photos.astronaut()[:256, 100:356].astype(int)
    assert np.abs(from_record(record).picture - picture).mean() < 2
