"""A headless ComfyUI server as a context manager: start it, run a workflow in API form, fetch pictures, stop it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base_directory
import hosts
import repository
from launch_host import WATCH_PARENT

START_TIMEOUT = 300.0
Prompt = dict[str, dict[str, Any]]


class HostError(Exception):
    """The host did not start, refused a workflow, or failed while running it."""


class HostServer:
    """`with HostServer(host, base) as server: server.queue(prompt)`. host: a ComfyUI folder; base: a base directory."""

    def __init__(self, host: Path, base: Path, *, arguments: tuple[str, ...] = (), log: Path | None = None) -> None:
        self.host = host
        self.base = base
        self.arguments = arguments
        self.log = log or repository.LOGS / f"host-{base.name}.log"
        self.port = 0
        self.start_seconds = 0.0
        self.node_seconds: dict[str, float] = {}
        """Seconds each node of the last workflow took, by node id. Nodes answered from the cache are not in it."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HostServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        begun = time.monotonic()
        self.port = free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, WATCH_PARENT: "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                # Not in our process group: Ctrl-C reaches only us, and we stop the server cleanly.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        try:
            self._wait_until_up(begun)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - begun

    def _command(self) -> list[str]:
        launcher = Path(__file__).with_name("launch_host.py")
        command = [str(repository.venv_python()), str(launcher), str(self.host), "--port", str(self.port)]
        command += ["--disable-auto-launch", hosts.offline_argument(self.host), "--database-url", "sqlite:///:memory:"]
        return [*command, *base_directory.host_arguments(self.base), *self.arguments]

    def _wait_until_up(self, begun: float) -> None:
        while True:
            try:
                self.get("system_stats", timeout=5)
                return
            except OSError:
                self._raise_if_ended()
            if time.monotonic() - begun > START_TIMEOUT:
                raise HostError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s.\n{self.log_tail()}")
            time.sleep(0.1)

    def _raise_if_ended(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        text = self.log.read_text(encoding="utf-8", errors="replace")
        missing = re.search(r"ModuleNotFoundError: No module named '([^']+)'\s*$", text)
        if missing:
            command = f"{repository.venv_python()} -m pip install -r {self.host / 'requirements.txt'}"
            raise HostError(f"This ComfyUI needs the Python package {missing[1]}. To install what it needs: {command}")
        raise HostError(f"ComfyUI ended with exit code {self._process.returncode}.\n{self.log_tail()}")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the server printed, for error messages."""
        text = self.log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        return "\n".join([f"The end of {self.log}:", *("  " + line for line in text[-lines:])])

    def stop(self) -> None:
        """Stop the server, by force if needed. May be called at any time, and twice."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin:
            process.stdin.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, *, timeout: float = 60) -> Any:
        """The JSON the server gives for a path."""
        return json.loads(self._read(path, timeout=timeout))

    def _read(self, path: str, *, timeout: float = 60, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        # A proxy for the internet is not for this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as answer:
            content: bytes = answer.read()
        return content

    def object_info(self) -> dict[str, Any]:
        """Every node the server knows, with its inputs and outputs."""
        info: dict[str, Any] = self.get("object_info")
        return info

    def fetch_image(self, image: dict[str, str]) -> bytes:
        """The file behind one entry of a history's `images`."""
        query = urllib.parse.urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
        return self._read(f"view?{query}")

    # --- running a workflow ------------------------------------------------------------------------------------------

    def queue(
        self, prompt: Prompt, *, timeout: float = 3600, report: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Run a workflow to its end and return its history entry. `report` gets a line for each node."""
        run = Run(prompt, report or (lambda line: None))
        try:
            asyncio.run(asyncio.wait_for(self._run(run), timeout))
        except asyncio.TimeoutError:
            self._read("interrupt", data=b"{}")
            raise HostError(f"The workflow was not done after {timeout:.0f} s and was interrupted.") from None
        self.node_seconds = run.seconds
        if run.error:
            raise HostError(run.error)
        return self._history(run.prompt_id)

    async def _run(self, run: Run) -> None:
        import aiohttp

        client = uuid.uuid4().hex
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_,
            ):
                run.prompt_id = await asyncio.to_thread(self._submit, run.prompt, client)
                async for message in socket_:
                    if message.type == aiohttp.WSMsgType.TEXT and run.take(json.loads(message.data)):
                        return
        except (aiohttp.ClientError, OSError):
            pass
        raise HostError(f"ComfyUI went away while running the workflow.\n{self.log_tail()}")

    def _submit(self, prompt: Prompt, client: str) -> str:
        data = json.dumps({"prompt": prompt, "client_id": client}).encode()
        try:
            answer = json.loads(self._read("prompt", data=data))
        except urllib.error.HTTPError as error:
            raise HostError(explain_refusal(json.loads(error.read()), prompt)) from None
        if answer.get("node_errors"):
            # The host rejects single outputs and would run the rest: half a workflow is of no use here.
            self._read("queue", data=json.dumps({"delete": [answer["prompt_id"]]}).encode())
            self._read("interrupt", data=b"{}")
            raise HostError(explain_refusal(answer, prompt))
        return str(answer["prompt_id"])

    def _history(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(100):
            history = self.get(f"history/{prompt_id}")
            if prompt_id in history:
                entry: dict[str, Any] = history[prompt_id]
                return entry
            time.sleep(0.1)  # the last message comes just before the entry is written
        raise HostError("ComfyUI has no history of the workflow it ran.")


class Run:
    """A running workflow: handles the host's messages and times each node."""

    def __init__(self, prompt: Prompt, report: Callable[[str], None]) -> None:
        self.prompt = prompt
        self.prompt_id = ""
        self.seconds: dict[str, float] = {}
        self.error = ""
        self._report = report
        self._node: str | None = None
        self._since = self._spoke = time.monotonic()

    def take(self, message: dict[str, Any]) -> bool:
        """True when the workflow has ended."""
        kind, data = message.get("type"), message.get("data") or {}
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "executing":
            self._enter(data.get("node"))
        elif kind == "progress":
            self._progress(data)
        elif kind in ("execution_error", "execution_interrupted"):
            self.error = explain_failure(data) if kind == "execution_error" else "The workflow was interrupted."
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._enter(None)
            return True
        return False

    def _enter(self, node: str | None) -> None:
        now = time.monotonic()
        if self._node is not None:
            # A node that waits for others it requested is entered more than once.
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + now - self._since
            self._report(f"  {self.seconds[self._node]:7.1f} s  {self._title(self._node)}")
        self._node, self._since, self._spoke = node, now, now

    def _progress(self, data: dict[str, Any]) -> None:
        """Report a slow node from time to time."""
        if self._node is None or time.monotonic() - self._spoke < 10:
            return
        self._spoke = time.monotonic()
        self._report(f"             {self._title(self._node)}: {data.get('value')} of {data.get('max')}")

    def _title(self, node: str) -> str:
        return str(self.prompt.get(node, {}).get("class_type", node))


def explain_failure(data: dict[str, Any]) -> str:
    """The message of a node that failed, with its name."""
    return f"{data.get('node_type')} (node {data.get('node_id')}) failed: {str(data.get('exception_message')).strip()}"


def explain_refusal(answer: dict[str, Any], prompt: Prompt) -> str:
    """The host's validation errors of a workflow, one line per node."""
    lines = []
    for node, found in (answer.get("node_errors") or {}).items():
        name = prompt.get(node, {}).get("class_type", found.get("class_type"))
        for error in found.get("errors", []):
            lines.append(f"{name} (node {node}): {error.get('message')}: {error.get('details')}")
    error = answer.get("error") or {}
    summary = error.get("message", "no reason given") if isinstance(error, dict) else str(error)
    return "ComfyUI refused the workflow: " + ("\n  ".join(["", *lines]) if lines else summary)


def free_port() -> int:
    """A free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
