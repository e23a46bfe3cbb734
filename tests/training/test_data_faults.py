"""Faults of the data set builder that were found by trying it."""

import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dynamicid_core.errors import InputError
from dynamicid_core.images import open_photo
from dynamicid_core.training.data import __main__ as command
from dynamicid_core.training.data.photos import find_people
from dynamicid_core.training.data.sample import from_record, to_record
from dynamicid_core.training.data.shards import ShardWriter, read_samples
from dynamicid_core.training.order import ShardSource
from tests import photos
from tests.training.test_shards import SETTINGS, sample, write


def save_astronaut(folder):
    (folder / "she").mkdir(parents=True)
    picture = Image.fromarray(photos.astronaut())
    picture.save(folder / "she" / "a.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "she" / "b.png")
    return folder


def run(source, out, pack):
    options = ["--workers=1", "--provider=CPU", "--size=64", "--min-face=90"]
    return command.main(["build", f"--photos={source}", f"--out={out}", f"--pack={pack}", *options])


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


def test_a_photo_with_sixteen_bits_of_grey_is_not_washed_out(tmp_path):
    grey = photos.astronaut()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    assert np.array_equal(open_photo(tmp_path / "grey.png")[..., 0], grey)


def test_hidden_folders_of_a_person_are_passed_over(tmp_path):
    save_astronaut(tmp_path)
    (tmp_path / "she" / ".thumbnails").mkdir()
    shutil.copy(tmp_path / "she" / "a.png", tmp_path / "she" / ".thumbnails")
    assert find_people(tmp_path)[0][0].photos == ("a.png", "b.png")


def test_a_caption_saved_by_notepad_begins_with_its_first_word(tmp_path):
    save_astronaut(tmp_path)
    (tmp_path / "she" / "a.txt").write_text("a woman in a spacesuit\n", encoding="utf-8-sig")
    (tmp_path / "she" / "b.txt").write_text("", encoding="utf-8-sig")
    person = find_people(tmp_path)[0][0]
    assert [person.caption(photo) for photo in person.photos] == ["a woman in a spacesuit", "a photo of a person"]


def test_a_shard_cut_off_between_two_samples_is_named(tmp_path):
    shard = write(tmp_path / "set") / "train-000000.tar"
    with tarfile.open(shard) as tar:
        second = next(info.offset for info in tar if info.name.startswith("anna_0001"))
    shard.write_bytes(shard.read_bytes()[:second])
    with pytest.raises(InputError, match=r"train-000000\.tar could not be read \(it is cut off\)"):
        list(read_samples(tmp_path / "set"))


def test_an_empty_data_set_is_refused(tmp_path):
    with ShardWriter(tmp_path / "set", SETTINGS) as writer:
        writer.add("nobody", {}, {})
    with pytest.raises(InputError, match=r"is empty\. Build it"):
        ShardSource(tmp_path / "set", 0)


def test_a_run_killed_while_it_began_can_be_given_again(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "progress.jsonl.part").write_bytes(b"{")
    assert write(tmp_path / "set").joinpath("index.json").is_file()


def test_settings_may_change_while_nothing_is_made(tmp_path):
    ShardWriter(tmp_path / "set", {**SETTINGS, "size": 8}, shard_size=3)
    assert write(tmp_path / "set").joinpath("index.json").is_file()


def test_after_a_pack_without_keypoints_a_whole_one_goes_on_in_the_same_folder(tmp_path, pack):
    source = save_astronaut(tmp_path / "photos")
    (tmp_path / "pack").mkdir()
    for pattern in ("scrfd*", "w600k*"):
        shutil.copy(next(pack.glob(pattern)), tmp_path / "pack")
    assert run(source, tmp_path / "set", tmp_path / "pack") == 2
    assert run(source, tmp_path / "set", pack) == 0


@pytest.mark.parametrize("size", [(2000, 2), (1, 3000)])
def test_a_photo_as_thin_as_a_line_has_no_face(tmp_path, pack, size):
    source = save_astronaut(tmp_path / "photos")
    Image.new("RGB", size, "red").save(source / "she" / "line.png")
    assert run(source, tmp_path / "set", pack) == 0
    assert "she/line.png,no face" in (tmp_path / "set" / "rejected.csv").read_text()
