"""The order of a data set's samples: shuffled, split among processes, reproducible, resumable."""

from collections import Counter
from itertools import islice

import pytest

from dynamicid_core.errors import InputError
from dynamicid_core.training.order import ShardSource
from tests.training.samples import keys, write

PHOTOS = {"anna": 4, "ben": 3, "cleo": 2, "dan": 1}
ALL = sum(PHOTOS.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set", PHOTOS)


def test_a_data_set_without_a_manifest_names_no_recognition_model(folder):
    assert ShardSource(folder, 0).recognition == ""


def test_each_time_around_every_picture_comes_once_in_another_order(folder):
    seen = keys(islice(ShardSource(folder, 0).samples(0, 1), 2 * ALL))
    assert set(Counter(seen).values()) == {2}
    assert len(set(seen[:ALL])) == ALL
    assert seen[:ALL] != seen[ALL:]


def test_the_seed_fixes_the_order(folder):
    first, again, other = (keys(islice(ShardSource(folder, seed).samples(0, 1), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_processes_share_the_pictures(folder):
    whole = keys(islice(ShardSource(folder, 0).samples(0, 1), 12))
    shares = [keys(islice(ShardSource(folder, 0).samples(process, 3), 4)) for process in range(3)]
    assert [key for group in zip(*shares, strict=True) for key in group] == whole


def test_skipping_goes_on_where_it_would_have_been(folder):
    source = ShardSource(folder, 0)
    assert keys(islice(source.samples(0, 1, skip=7), 8)) == keys(islice(source.samples(0, 1), 15))[7:]
    whole = [keys(group) for group in islice(source.people(1, 2, 3), 6)]
    assert [keys(group) for group in islice(source.people(1, 2, 3, skip=2), 4)] == whole[2:]


def test_a_source_is_never_its_own_target_and_people_with_one_photo_are_left_out(folder):
    groups = list(islice(ShardSource(folder, 0).people(0, 1, 4), 60))
    assert {group[0].identity for group in groups} == {"anna", "ben", "cleo"}
    for group in groups:
        source, *targets = keys(group)
        assert len(targets) == 3
        assert source not in targets
        assert len({one.identity for one in group}) == 1


def test_every_photo_becomes_a_source(folder):
    groups = islice(ShardSource(folder, 0).people(0, 1, 2), 200)
    assert len({group[0].key for group in groups}) == ALL - 1


def test_a_data_set_without_pairs_is_refused_for_reconfiguration(tmp_path):
    source = ShardSource(write(tmp_path / "set", {"dan": 1, "eve": 1}), 0)
    with pytest.raises(InputError, match=r"Nobody in .* has two photos"):
        next(source.people(0, 1, 2))


def test_every_process_goes_on_where_it_would_have_been(folder):
    source = ShardSource(folder, 0)
    assert keys(islice(source.samples(1, 3, skip=2), 4)) == keys(islice(source.samples(1, 3), 6))[2:]


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is empty\. Build it"):
        ShardSource(write(tmp_path / "set", {"nobody": 0}), 0)
