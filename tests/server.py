"""A local server that sends files, breaks off as configured, and resumes where it is asked to."""

import io
import re
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Server(ThreadingHTTPServer):
    """files: by path. cut: numbers of bytes after which successive answers break off. refuse: status codes of the first
    answers. content_type: of all files. asked: the requested ranges. skip: bytes that answers to a range claim to leave
    out. length: the Content-Length to claim.
    """

    def __init__(self, files, cut=(), ranges=True, refuse=(), content_type="application/zip", retry_after=None):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.cut, self.ranges, self.asked = files, list(cut), ranges, []
        self.refuse, self.content_type, self.retry_after = list(refuse), content_type, retry_after
        self.skip, self.length = 0, ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        given, asked = self.server.files.get(self.path), self.headers["Range"]
        self.server.asked.append(asked)
        if self.server.refuse:
            self.send_response(self.server.refuse.pop(0))
            if self.server.retry_after:
                self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif given is None:
            self.send_error(404)
        else:
            self._send(given, asked)

    def _send(self, given, asked):
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start >= len(given):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(given)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            begin = start + self.server.skip
            self.send_header("Content-Range", f"bytes {begin}-{len(given) - 1}/{len(given)}")
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", self.server.length or str(len(given) - start))
        self.end_headers()
        end = start + self.server.cut.pop(0) if self.server.cut else len(given)
        self.wfile.write(given[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving(*args, **kwargs):
    server = Server(*args, **kwargs)
    patch = pytest.MonkeyPatch()
    for name in ("no_proxy", "NO_PROXY"):
        patch.setenv(name, "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        patch.undo()
        server.shutdown()
        server.server_close()


def packed(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, f"weights of {Path(name).name}")
    return file.getvalue()
