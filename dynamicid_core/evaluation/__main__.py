"""python -m dynamicid_core.evaluation --references DIR --out DIR --base-model FILE --clip-vision FILE --adapter FILE
--pack DIR [--imr FILE --keypoint-encoder FILE] [--clip-score FILE …] …

Measures CLIP-T, FaceSim, Expr, Pose and disruption, and prints them beside the paper's figures. Giving the same command
again resumes an interrupted run. EVALUATION.md says what is measured and what is assumed.
"""

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoint import ADAPTER, IMR, KEYPOINT_ENCODER, VARIANTS, read_checkpoint
from ..comfyui import prepare_comfyui
from ..commands import run_command
from ..errors import InputError
from ..face_packs import find_pack, model_sizes, open_pack
from ..files import explain_write_errors
from ..saa import SaaSettings
from .cases import Reference, find_references, plan
from .plots import draw_bars, draw_sheets
from .results import RESUME_HINT, Results
from .run import evaluate
from .settings import comparable_rows, settings_for
from .tables import make_tables, render

_log = logging.getLogger(__name__)
_PART = 1 << 20  # bytes that a fingerprint reads at once
_LARGE = 100 << 20  # bytes; reading a file of more shows its progress
_FILES = ("base_model", "clip_vision", "adapter", "imr", "keypoint_encoder", "clip_score")


def main(arguments: list[str]) -> int:
    """Exit code, see ``run_command``."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_command(
        lambda: print(run(options), end=""),
        "Interrupted. What was measured is saved: the same command resumes from here.",
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamicid_core.evaluation",
        description="Measures an adapter as the paper's tables do. Giving the same command again resumes an "
        "interrupted run.",
    )
    add = parser.add_argument
    add("--references", type=Path, required=True, metavar="DIR", help="a photo, or a folder of photos, of each person")
    add("--out", type=Path, required=True, metavar="DIR", help="for pictures, results.csv, tables and plots")
    add("--base-model", type=Path, required=True, metavar="FILE", help="an SD1.5 checkpoint")
    add("--clip-vision", type=Path, required=True, metavar="FILE", help="CLIP ViT-H/14, for the face encoder")
    add("--adapter", type=Path, required=True, metavar="FILE", help="SAA.bin, or a file from training")
    add("--variant", choices=list(VARIANTS), help="how the adapter was trained (default: as the file says)")
    add("--imr", type=Path, metavar="FILE", help="without it, only settings without editing are measured")
    add("--keypoint-encoder", type=Path, metavar="FILE", help="the one that belongs to the IMR")
    add("--pack", type=Path, required=True, metavar="DIR", help="folder of the InsightFace pack, such as buffalo_l")
    add(
        "--clip-score",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="for CLIP-T: a whole CLIP, or a text encoder and a vision model, with projections (default: no CLIP-T)",
    )
    add("--comfyui", type=Path, metavar="DIR", help="ComfyUI's folder (default: COMFYUI_PATH)")
    add("--people", type=_numbers, default=[1, 2, 3], metavar="N,N", help="people per picture (default: 1,2,3)")
    add("--seeds", type=int, default=1, metavar="N", help="seeds that the cases are spread over (default: 1)")
    add("--steps", type=int, default=50, metavar="N", help="of the sampler (default: 50)")
    add("--threshold", type=float, default=0.3, metavar="T", help="of the gate (default: 0.3, as released)")
    add("--size", type=_size, default=(512, 512), metavar="WxH", help="of the pictures (default: 512x512)")
    add("--limit", type=int, default=280, metavar="N", help="cases for each number of people (default: 280)")
    add("--cpu", action="store_true", help="paint on the CPU")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """The whole evaluation; returns its tables."""
    references = find_references(options.references)
    names = [reference.name for reference in references]
    cases = [case for number in options.people for case in plan(names, number, options.seeds, options.limit)]
    settings = settings_for(_edits(options))
    results = Results(options.out, _run_settings(options, references))
    if any(not results.has(setting.name, case.key) for case in cases for setting in settings):
        evaluate(_open_pipeline(options), references, cases, settings, results)
    rows = comparable_rows(results.rows, cases, settings)
    tables = make_tables(rows)
    text = render(tables)
    with explain_write_errors(options.out, RESUME_HINT):
        (options.out / "tables.md").write_text(text, encoding="utf-8")
        draw_sheets(rows, options.out, references)
        draw_bars(tables, options.out / "bars.png")
    return text


def _open_pipeline(options: argparse.Namespace) -> Any:
    parts = {
        part: None if path is None else read_checkpoint(path, part)
        for part, path in ((IMR, options.imr), (KEYPOINT_ENCODER, options.keypoint_encoder))
    }
    adapter = read_checkpoint(options.adapter, ADAPTER, VARIANTS.get(options.variant))
    analysis = open_pack(find_pack(options.pack), "CPU" if options.cpu else "auto")
    prepare_comfyui(options.comfyui, options.cpu)
    # Modules that import ComfyUI can only be imported now.
    from ..comfy_host.clip_pair import load_text_and_vision
    from ..comfy_host.differentiable import load_base_model, load_clip_vision
    from ..comfy_host.loading import load_dynamicid
    from ..comfy_host.painting import BaseModel, Sampling
    from .clip_score import ClipScore
    from .pipeline import HostPipeline

    width, height = options.size
    sampling = Sampling(width, height, options.steps)
    return HostPipeline(
        BaseModel(*load_base_model(options.base_model)),
        load_dynamicid(adapter, **parts),
        load_clip_vision(options.clip_vision),
        analysis,
        sampling,
        ClipScore(*load_text_and_vision(options.clip_score)) if options.clip_score else None,
        options.threshold,
    )


def _edits(options: argparse.Namespace) -> bool:
    """Whether expression and pose can be edited."""
    if (options.imr is None) != (options.keypoint_encoder is None):
        raise InputError("The IMR needs its keypoint encoder: give both --imr and --keypoint-encoder, or neither.")
    if options.imr is None:
        _log.info("No --imr: only the settings without editing are measured; Expr and Pose are then at chance level.")
    return options.imr is not None


def _run_settings(options: argparse.Namespace, references: Sequence[Reference]) -> dict[str, Any]:
    """What makes pictures or their measures differ."""
    about: dict[str, Any] = {"steps": options.steps, "size": list(options.size), "variant": options.variant}
    about["threshold"] = SaaSettings(threshold=options.threshold).threshold
    for name in _FILES:
        given = getattr(options, name)
        about[name] = [_fingerprint(path, name) for path in (given if isinstance(given, list) else [given]) if path]
    about["pack"] = model_sizes(find_pack(options.pack))
    return about | {f"photo of {one.name}": _fingerprint(one.path, "references") for one in references}


def _fingerprint(path: Path, option: str) -> str:
    """Name, length and a digest of the whole file: fine-tuned models may differ from each other in the middle only."""
    if not path.is_file():
        raise InputError(f"There is no file {path} (--{option.replace('_', '-')}).")
    size, digest = path.stat().st_size, hashlib.sha256()
    bar = tqdm(total=size, desc=f"Reading {path.name}", unit="B", unit_scale=True, leave=False, disable=size < _LARGE)
    with bar, path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
            bar.update(len(part))
    return f"{path.name}, {size} bytes, {digest.hexdigest()[:16]}"


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers such as 1,2,3")
    return sorted({int(number) for number in text.split(",")})


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 512x512")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
