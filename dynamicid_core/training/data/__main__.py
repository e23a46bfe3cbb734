"""python -m dynamicid_core.training.data {build,synthesize} …: makes training data sets."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ...commands import run_command
from ...errors import InputError
from ...face_packs import DEFAULT_PACK, PROVIDERS, find_pack
from . import gates
from .build import Job, build
from .gates import Gates
from .manifest import MANIFEST, REJECTED, SHEET, contents, summary, write_manifest
from .photos import find_people
from .shards import SHARD_SIZE
from .workers import cores

_SYNTHESIZE = "synthesize"
_INSTALL = "run python -m pip install -r requirements-training.txt"
_DESCRIPTION = """\
Makes a data set from photos, a folder per person:

  photos/anna/1.jpg  photos/anna/2.jpg  photos/ben/party.png  photos/ben/party.txt …

A .txt file beside a photo is its caption. From each photo that passes the gates, a square around the face is kept, with
its 106 keypoints, pose, expression, face prompt and ArcFace embedding. The out folder gets WebDataset shards, an index
by person, manifest.json (counts), rejected.csv (every rejected photo, and why) and contact_sheet.jpg.

Giving the same command again resumes an interrupted run. People who are new in the folder of photos are added.
"""


def main(arguments: list[str]) -> int:
    """Exit code, see ``run_command``."""

    def work() -> None:
        options = parse(arguments)
        options.run(options)

    return run_command(work, "Interrupted. The same command resumes from what is complete.")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line; ``run`` is the function to call with them. Raises InputError when a package is
    missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dynamicid_core.training.data", description="Makes data sets for training DynamicID."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build_arguments(
        commands.add_parser(
            "build",
            help="from photos, a folder per person",
            description=_DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    synthesize = commands.add_parser(_SYNTHESIZE, help="of rendered heads, with exact labels")
    if arguments[:1] == [_SYNTHESIZE]:  # only then, since it needs packages that photos do not need
        command = _synthetic_command()
        command.add_arguments(synthesize)
        synthesize.set_defaults(run=command.run)
    return parser.parse_args(arguments)


def run_build(options: argparse.Namespace) -> None:
    """Builds the data set and its manifest, and prints a summary."""
    job = Job(
        photos=options.photos,
        out=options.out,
        pack=find_pack(options.pack),
        gates=Gates(options.size, options.min_face, options.sharpness, options.agreement, options.least_photos),
        provider=options.provider,
        workers=options.workers,
        shard_size=options.shard_size,
    )
    _, strays, empty = find_people(job.photos)
    writer = build(job)
    found = contents(writer.progress.people, [(photo, gates.STRAY, "") for photo in strays], empty)
    metadata = write_manifest(job.out, found, job.settings())
    print(summary(metadata))
    print(f"{job.out}: {MANIFEST}, {REJECTED}, {SHEET}")


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    limits = Gates()
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="DIR", help="folder that holds a folder of photos per person")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the data set: new, or one to resume")
    add(
        "--pack", type=Path, default=DEFAULT_PACK, metavar="DIR", help=f"InsightFace's models (default: {DEFAULT_PACK})"
    )
    add("--size", type=int, default=limits.size, help="pixels of the pictures, a multiple of 8 (default: %(default)s)")
    add(
        "--min-face",
        type=int,
        default=limits.min_face,
        metavar="PIXELS",
        help="minimum of a face's longer side (default: %(default)s)",
    )
    add(
        "--sharpness",
        type=float,
        default=limits.sharpness,
        help="minimum sharpness of a face; sharp photos have 0.02 to 0.8, 0 keeps all (default: %(default)s)",
    )
    add(
        "--agreement",
        type=float,
        default=limits.agreement,
        help="minimum ArcFace cosine of a face to the person's others, -1 keeps all (default: %(default)s)",
    )
    add(
        "--least-photos",
        type=int,
        default=limits.least_photos,
        metavar="N",
        help="minimum photos per person; 1 is enough for anchoring alone (default: %(default)s)",
    )
    add("--workers", type=int, default=cores(), help="processes (default: one per core, here %(default)s)")
    add("--provider", choices=["auto", *PROVIDERS], default="auto", help="where models run (default: %(default)s)")
    add("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help="samples per shard (default: %(default)s)")
    parser.set_defaults(run=run_build)


def _synthetic_command() -> Any:
    try:
        return import_module("..synthetic.command", __package__)
    except ImportError as error:
        missing = error.name or str(error)
        hint = "update the pack" if missing.startswith(str(__package__).partition(".")[0]) else _INSTALL
        raise InputError(f"{_SYNTHESIZE} cannot run without {missing}, which is not there: {hint}.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
