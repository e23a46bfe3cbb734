"""Downloads of large files, with resume, progress and cancellation."""

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
"""Called before each attempt and after each chunk, with the bytes downloaded and those of the whole file (0 while that
is not known). An exception from it stops the download."""

_CHUNK_SIZE = 1 << 18  # bytes; a partial chunk is discarded
_TIMEOUTS = (10, 15)  # seconds: to connect, and to wait for data
_MAX_FAILURES = 5  # in a row, without new data
_MAX_PAUSE = 30.0  # seconds


def fetch(url: str, path: Path, report: Report = lambda done, total: None) -> None:
    """Downloads a file. Until it is complete it has the suffix .part, from which a later call resumes.

    Raises InputError if the server does not have it, and the errors of requests and of the disk (all OSError) if it
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
                _resume(url, unfinished, report, bar)
                break
            except requests.RequestException as error:  # usually a broken connection
                failures = 0 if _size(unfinished) > furthest else failures + 1
                furthest = max(furthest, _size(unfinished))
                if failures == _MAX_FAILURES:
                    raise
                if error.response is not None:
                    _wait(_pause(error.response, failures), partial(report, furthest, 0))
    os.replace(unfinished, path)


def _resume(url: str, unfinished: Path, report: Report, bar: Any) -> None:
    """Downloads the rest of the file. Raises ConnectionError if the connection breaks before its end."""
    import requests

    done = _size(unfinished)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with closing(requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS)) as response:
        if done and response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("content-range", "").endswith(f"/{done}"):
                return  # complete
            unfinished.unlink(missing_ok=True)
            raise requests.ConnectionError(f"{url} has fewer than the {done:,} bytes downloaded so far")
        _check_response(url, response)
        if response.status_code != requests.codes.partial_content:
            done = 0  # all of it, whatever was asked for
        elif not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
            unfinished.unlink(missing_ok=True)
            raise requests.ConnectionError(f"{url} does not continue after the {done:,} bytes downloaded so far")
        length = response.headers.get("content-length", "")
        total = done + int(length) if length.isdecimal() else 0
        bar.total = total or None
        with unfinished.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(_CHUNK_SIZE):
                file.write(chunk)
                done += len(chunk)
                bar.update(done - bar.n)
                report(done, total)
    if done < total:
        raise requests.ConnectionError(f"{url} was cut off after {done:,} of {total:,} bytes")


def _check_response(url: str, response: Any) -> None:
    """Raises ConnectionError for a response that may differ next time, InputError for one that will not."""
    import requests

    busy = response.status_code == requests.codes.too_many_requests or response.status_code >= 500
    said = f"{url} answers {response.status_code} {response.reason}"
    if busy:
        raise requests.ConnectionError(said, response=response)
    if not response.ok:
        raise InputError(said)
    if response.headers.get("content-type", "").startswith("text/html"):
        raise InputError(f"{url} answers with a web page, as a network that requires a login does")


def _pause(response: Any, failures: int) -> float:
    """Seconds to wait for a busy server: as long as it asks for, else exponential back-off."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked) if asked.isdecimal() else 2.0**failures, _MAX_PAUSE)


def _wait(seconds: float, ask: Callable[[], None]) -> None:
    """Waits. ask: called meanwhile; an exception from it ends the wait."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ask()
        time.sleep(min(left, 0.2))


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
