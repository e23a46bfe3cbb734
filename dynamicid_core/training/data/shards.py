"""Samples in WebDataset shards: written so that an interrupted run can resume, read in order or by person."""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import explain_write_errors
from .sample import Record, Sample, from_record
from .storage import RESUME_HINT, Progress, write_atomically

INDEX = "index.json"
SHARD_SIZE = 1000
_UNFINISHED = ".part"
_END = bytes(1024)  # of every tar file


class ShardWriter:
    """Writes people, one after the other, into ``<split>-000000.tar`` and so on, and ``index.json`` at the end of a
    ``with``. However that ends, complete shards stay and incomplete ones are removed.

    A shard ends with the person who fills it, and is the same bit for bit whether the run was interrupted or not, as
    long as people come in the same order.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], split: str = "train", shard_size: int = SHARD_SIZE
    ) -> None:
        """Opens or creates a data set. settings: distinguish it from others. shard_size: minimum samples per shard.

        Raises InputError as ``Progress`` does, for a missing shard, and without WebDataset.
        """
        _import_webdataset()
        self.progress = Progress(folder, {**settings, "split": split, "shard_size": shard_size})
        self._folder, self._split, self._shard_size = folder, split, shard_size
        self._people: list[dict[str, Any]] = []
        self._open: _OpenShard | None = None
        for unfinished in folder.glob("*" + _UNFINISHED):
            unfinished.unlink()
        for shard in self._shards():
            if not (folder / shard).is_file():
                raise InputError(f"{folder / shard} is missing. Put it back, or start over in another --out folder.")

    @property
    def done(self) -> set[str]:
        """Names of the people who are in complete shards, or were left out, in this run or an earlier one."""
        return {person["name"] for person in self.progress.people}

    def add(self, name: str, records: Mapping[str, Record], metadata: Mapping[str, Any]) -> None:
        """Adds a person with their samples by key; a person without samples is recorded as left out.

        metadata: further entries for ``progress.jsonl``. Raises InputError when the disk is full; complete shards stay.
        """
        with explain_write_errors(self._folder, RESUME_HINT):
            for key, record in records.items():
                if self._open is None:
                    self._open = _OpenShard(self._folder / f"{self._split}-{len(self._shards()):06d}.tar")
                self._open.write(key, record)
            self._people.append({"name": name, "keys": list(records), **metadata})
            if self._open is not None and self._open.samples >= self._shard_size:
                self._end_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._abandon()

    def _finish(self) -> None:
        """Ends the last shard and writes the index. Raises InputError when the disk is full."""
        with explain_write_errors(self._folder, RESUME_HINT):
            if self._people:
                self._end_shard()
        people = {
            person["name"]: [[line["shard"], key] for key in person["keys"]]
            for line in self.progress.lines
            for person in line["people"]
            if person["keys"]
        }
        index = {"shards": self._shards(), "people": people}
        write_atomically(self._folder / INDEX, json.dumps(index).encode())

    def _abandon(self) -> None:
        """Drops the incomplete shard; the people in it are not done."""
        if self._open is not None:
            self._open.drop()
        self._open, self._people = None, []

    def _end_shard(self) -> None:
        shard = None if self._open is None else self._open.end()
        self._open = None
        self.progress.add(shard, self._people)
        self._people = []

    def _shards(self) -> list[str]:
        return [line["shard"] for line in self.progress.lines if line["shard"] is not None]


class _OpenShard:
    """A tar file that is being written, under a temporary name."""

    def __init__(self, path: Path) -> None:
        tar_writer = _import_webdataset().TarWriter
        self._path, self._unfinished = path, path.with_name(path.name + _UNFINISHED)
        self._file = open(self._unfinished, "wb")  # noqa: SIM115 - closed by end and drop
        self._tar = tar_writer(self._file, encoder=False, mtime=0)  # no times, so that equal samples give equal files
        self.samples = 0

    def write(self, key: str, record: Record) -> None:
        self._tar.write({"__key__": key, **record})
        self.samples += 1

    def end(self) -> str:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._unfinished, self._path)
        return self._path.name

    def drop(self) -> None:
        for close in (self._tar.close, self._file.close):
            with suppress(OSError):  # flushing fails on a full disk, too
                close()
        self._unfinished.unlink(missing_ok=True)


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not the name of a shard or a sample")
    return name


class SampleIndex:
    """A finished data set by person, with random access to samples. Safe to share among processes.

    people: name -> (shard, key) of each of their samples. shards: file names in order.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError when there is no finished data set in the folder."""
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            unfinished = "its data set is not finished; run the command that makes it again"
            what = unfinished if self.folder.is_dir() and any(self.folder.iterdir()) else "make a data set there first"
            raise InputError(f"{self.folder} has no {INDEX}: {what} (python -m dynamicid_core.training.data).")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.shards = [_text(shard) for shard in found["shards"]]
            self.people = {
                name: [(_text(shard), _text(key)) for shard, key in places] for name, places in found["people"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}). Run the command that makes the data set again.") from error
        self._places: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}

    def read(self, shard: str, key: str) -> Sample:
        """One sample. Raises InputError when it is missing or damaged."""
        path = self.folder / shard
        record: dict[str, Any] = {"__key__": key, "__url__": str(path)}
        places = self._places_in(shard).get(key, {})
        try:
            with open(path, "rb") as file:
                for member, (offset, size) in places.items():
                    file.seek(offset)
                    record[member] = file.read(size)
        except OSError as error:
            raise _unreadable(path, error) from error
        return from_record(record)

    def samples(self, name: str) -> list[Sample]:
        """All samples of a person."""
        return [self.read(shard, key) for shard, key in self.people[name]]

    def _places_in(self, shard: str) -> dict[str, dict[str, tuple[int, int]]]:
        """Key -> member -> its offset in the tar file, and its size."""
        if shard not in self._places:
            path = self.folder / shard
            places: dict[str, dict[str, tuple[int, int]]] = {}
            try:
                with tarfile.open(path) as tar:
                    for info in tar:
                        key, _, member = info.name.partition(".")
                        places.setdefault(key, {})[member] = (info.offset_data, info.size)
            except (OSError, tarfile.TarError) as error:
                raise _unreadable(path, error) from error
            self._places[shard] = places
        return self._places[shard]


def read_samples(folder: str | Path) -> Iterator[Sample]:
    """All samples of a finished data set, in the order they were written."""
    index = SampleIndex(folder)
    return map(from_record, _records(index.folder / shard for shard in index.shards))


def _records(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The records of shards, each with WebDataset's own __key__ and __url__."""
    tars = _import_webdataset().tariterators
    for shard in shards:
        try:
            # Opened here and not by WebDataset, which takes a Windows path for a URL.
            with open(shard, "rb") as file:
                file.seek(-len(_END), os.SEEK_END)
                if file.read() != _END:  # cut off between two samples, which tar readers do not notice
                    raise tarfile.ReadError("it is cut off")
                file.seek(0)
                yield from tars.group_by_keys(tars.tar_file_expander([{"url": str(shard), "stream": file}]))
        except (OSError, tarfile.TarError) as error:
            raise _unreadable(shard, error) from error


def _import_webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise InputError(
            f"Data sets need the Python package {error.name or 'webdataset'}, which is not installed. Run: "
            "python -m pip install -r requirements-training.txt"
        ) from error
    return webdataset


def _unreadable(shard: Path, error: Exception) -> InputError:
    return InputError(f"{shard} could not be read ({error}). Copy it again, or rebuild the data set.")
