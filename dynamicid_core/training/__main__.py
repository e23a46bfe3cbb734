"""python -m dynamicid_core.training {anchor,reconfigure} --config FILE.yaml [--comfyui DIR] [--cpu]

Trains one stage of DynamicID with the layers that the nodes run. An interrupted run goes on when the same command is
given again. On several GPUs or machines: accelerate launch -m dynamicid_core.training ….
"""

import argparse
import logging
import sys
from pathlib import Path

from ..errors import InputError
from .config import AnchorConfig, ReconfigureConfig, RunConfig, load_config
from .host import prepare_comfyui

_KINDS: dict[str, type[RunConfig]] = {"anchor": AnchorConfig, "reconfigure": ReconfigureConfig}


def main(arguments: list[str]) -> int:
    """Exit code: 0 when done, 2 for something to put right, 130 when interrupted."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. The state is saved: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamicid_core.training",
        description="Trains one stage of DynamicID. An interrupted run goes on when the same command is given again.",
    )
    parser.add_argument("stage", choices=list(_KINDS), help="anchor: face encoder and SAA; reconfigure: the IMR")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, as a YAML file")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="ComfyUI's folder (default: COMFYUI_PATH)")
    parser.add_argument("--cpu", action="store_true", help="train on the processor")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """One stage, from its config file to its weights."""
    config = load_config(options.config, _KINDS[options.stage])
    prepare_comfyui(options.comfyui, options.cpu)
    choose_device(options.cpu)
    # Only now can what imports ComfyUI be imported.
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


def choose_device(cpu: bool) -> None:
    """Lets every process of a launcher have its own device, before ComfyUI loads models onto the current one."""
    from accelerate import PartialState

    PartialState(cpu=cpu)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
