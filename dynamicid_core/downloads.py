"""Large files from the internet: they go on where they were cut off, show how far they are, and can be stopped."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import InputError

Report = Callable[[int, int], None]
"""Called before each attempt and after each piece, with the bytes that are there and those of the whole file, 0 while
that is not known. What it raises stops the download."""

_PIECE = 1 << 18  # bytes; of one that breaks off nothing is kept
_SECONDS = (10, 15)  # until there is a connection; without a byte
_ATTEMPTS = 5  # in a row that bring nothing new
_LONGEST_PAUSE = 30.0  # seconds


def fetch(url: str, path: Path, report: Report = lambda done, whole: None) -> None:
    """Downloads a file. Until it is whole it is ``path`` with the ending .part, from which another call goes on.

    Raises InputError when the server does not have it, and what requests and the disk raise (all OSError) when it
    cannot be fetched or written.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    furthest, failures = _size(unfinished), 0
    with tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            report(_size(unfinished), 0)
            try:
                _go_on(url, unfinished, report, bar)
                break
            except requests.RequestException as error:  # a connection that broke, most often
                failures = 0 if _size(unfinished) > furthest else failures + 1
                furthest = max(furthest, _size(unfinished))
                if failures == _ATTEMPTS:
                    raise
                if error.response is not None:
                    _wait(_pause(error.response, failures), partial(report, furthest, 0))
    os.replace(unfinished, path)


def _go_on(url: str, unfinished: Path, report: Report, bar: Any) -> None:
    """From where the file ends to the end of what the server has. Raises ConnectionError when less came."""
    import requests

    done = _size(unfinished)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with closing(requests.get(url, headers=headers, stream=True, timeout=_SECONDS)) as answer:
        if done and answer.status_code == requests.codes.requested_range_not_satisfiable:
            if answer.headers.get("content-range", "").endswith(f"/{done}"):
                return  # all there
            unfinished.unlink(missing_ok=True)
            raise requests.ConnectionError(f"{url} has fewer than the {done:,} bytes downloaded so far")
        _check(url, answer)
        if answer.status_code != requests.codes.partial_content:
            done = 0  # all of it, whatever was asked for
        whole = done + int(answer.headers.get("content-length", -done))
        bar.total = whole or None
        with unfinished.open("ab" if done else "wb") as file:
            for piece in answer.iter_content(_PIECE):
                file.write(piece)
                done += len(piece)
                bar.update(done - bar.n)
                report(done, whole)
    if done < whole:
        raise requests.ConnectionError(f"{url} was cut off after {done:,} of {whole:,} bytes")


def _check(url: str, answer: Any) -> None:
    """Raises ConnectionError where a server may answer otherwise the next time, InputError where it will not."""
    import requests

    busy = answer.status_code == requests.codes.too_many_requests or answer.status_code >= 500
    said = f"{url} answers {answer.status_code} {answer.reason}"
    if busy:
        raise requests.ConnectionError(said, response=answer)
    if not answer.ok:
        raise InputError(said)
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise InputError(f"{url} answers with a web page, as a network that requires a login does")


def _pause(answer: Any, failures: int) -> float:
    """How many seconds a busy server is left alone: as long as it asks for, or longer from time to time."""
    asked = answer.headers.get("retry-after", "")
    return min(float(asked) if asked.isdecimal() else 2.0**failures, _LONGEST_PAUSE)


def _wait(seconds: float, ask: Callable[[], None]) -> None:
    """ask: called meanwhile; what it raises ends the waiting."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ask()
        time.sleep(min(left, 0.2))


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
