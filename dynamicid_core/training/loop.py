"""The training loop of every stage, on one device or many; it can be interrupted and resumed at any step.

Random numbers depend only on the seed, the step and the process, and the seed fixes the order of the data, so a resumed
run computes what an uninterrupted one would.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import InputError
from .average import WeightAverage
from .config import LoopConfig
from .curves import Metrics
from .interruption import StopRequest, stop_requests
from .states import States

_log = logging.getLogger(__name__)
_AVERAGE = "average.safetensors"
_PROCESSES = "number of processes"
_MAX_SKIPPED = 20  # steps in a row
# Settings that may change when a run is resumed; changing any other makes it another run.
_CHANGEABLE = {"steps", "log_every", "save_every", "sample_every", "sample_steps", "keep", "data", "output"}


class Stage(Protocol):
    """What the loop needs of a training stage."""

    @property
    def network(self) -> nn.Module:
        """The network whose forward returns the losses of a batch by name."""

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[Any]:
        """Endless data in an order fixed by the seed, without the first ``skip`` batches."""

    def make_batch(self, raw: Any, generator: torch.Generator, device: torch.device) -> Any:
        """The network's input."""

    def save_weights(self, folder: Path) -> None:
        """Writes the network's current weights in the loader's own format."""

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Saves a picture of what the current weights can do."""


def train(stage: Stage, config: LoopConfig, cpu: bool = False) -> None:
    """Trains to ``config.steps``, resuming from the last state in ``config.output`` if there is one.

    Raises InputError when that folder holds another run, or the disk is full. After the first Ctrl-C or SIGTERM every
    process finishes its step, a state is saved and KeyboardInterrupt raised; the second Ctrl-C raises it at once.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The output folder {output} could not be created: {error}. Choose another one.") from error
    accelerator = Accelerator(
        gradient_accumulation_steps=config.accumulation,
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with="tensorboard",
        project_dir=output,
        cpu=cpu,
        # A stage need not use every parameter in every batch.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    groups = _parameter_groups(stage.network, config.rates)
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    network, optimiser = accelerator.prepare(stage.network, optimiser)
    average = WeightAverage(stage.network, config.ema_decay)  # only now is the network on its device
    run = _Run(stage, config, accelerator, network, optimiser, average, States(output, config.keep))
    start = run.resume()
    with _ignoring_tensorboard_errors():
        accelerator.init_trackers("tensorboard")
    metrics = Metrics(output, start) if accelerator.is_main_process else None
    try:
        with stop_requests() as request:
            run.steps(start, metrics, request)
    finally:
        # Not end_training, which would destroy the process group: a recipe has more than one stage.
        for tracker in accelerator.trackers:
            with _ignoring_tensorboard_errors():
                tracker.finish()


@dataclasses.dataclass(eq=False)
class _Run:
    stage: Stage
    config: LoopConfig
    accelerator: Any
    network: nn.Module
    optimiser: Any
    average: WeightAverage
    states: States
    done: int = 0
    skipped: int = 0

    def resume(self) -> int:
        states = self.states.newest_first()
        for state in states:
            if not self._on_any_process(not self._load(state)):
                _log.info("Resuming from step %d", self.done)
                return self.done
        if states:
            raise InputError(
                f"No state in {states[0].parent} could be read; the log says why. Choose another output folder, or "
                "delete that one to start over."
            )
        return 0

    def _load(self, state: Path) -> bool:
        """Loads a state; returns whether it could be read. Raises InputError for a state of another run."""
        try:
            metadata = self.states.metadata(state)
            self._check_identity(metadata["config"], state)
            self.accelerator.load_state(str(state))
            self.average.load(load_file(state / _AVERAGE))
            self.done = int(metadata["step"])
        except InputError:
            raise
        except Exception as error:  # damaged files raise different types, by their format
            _log.warning("%s could not be read (%s: %s)", state, type(error).__name__, error)
            return False
        return True

    def _check_identity(self, theirs: Mapping[str, Any], state: Path) -> None:
        mine = self._identity()
        theirs = {_PROCESSES: mine[_PROCESSES], **theirs}  # older states do not record it
        changed = [name for name in mine if theirs.get(name) != mine[name]]
        if changed:
            raise InputError(
                f"{self.config.output} holds another run: {', '.join(changed)} differ. Choose another output folder, "
                f"or delete {state.parent} to start over."
            )

    def steps(self, start: int, metrics: Metrics | None, request: StopRequest) -> None:
        config, accelerator = self.config, self.accelerator
        skip = start * config.accumulation
        data = self.stage.raw_batches(accelerator.process_index, accelerator.num_processes, skip)
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=metrics is None, unit="step")
        for step in bar:
            losses = self._step(step, data)
            self.done = step + 1
            if metrics is not None and _is_due(self.done, config.log_every):
                figures = {name: float(loss) for name, loss in losses.items()}
                figures["learning_rate"] = self._learning_rate(step)
                metrics.add(self.done, figures)
                self._log(figures)
                bar.set_postfix(loss=f"{figures['loss']:.4f}")
            last = self.done == config.steps
            stopped = self._on_any_process(request.received)
            if _is_due(self.done, config.save_every) or last or stopped:
                self.save()
                if metrics is not None:
                    metrics.draw()
            if not stopped and (_is_due(self.done, config.sample_every) or (last and config.sample_every)):
                self._draw_sheet()
            if stopped:
                raise KeyboardInterrupt

    def save(self) -> None:
        """Saves weights for the loader, and the state to resume from."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and self.done:
            self.states.save(self.done, {"config": self._identity()}, self._write_state)
        self.accelerator.wait_for_everyone()  # the next stage may read the weights

    def _log(self, figures: dict[str, float]) -> None:
        with _ignoring_tensorboard_errors(self.accelerator.trackers.clear):
            self.accelerator.log(figures, step=self.done)

    def _on_any_process(self, made: bool) -> bool:
        """Whether a flag is set on any process; all must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return made
        return bool(self.accelerator.reduce(torch.tensor(float(made), device=self.accelerator.device), "sum") > 0)

    def _write_state(self, folder: Path) -> None:
        with self.average.in_place():
            self.stage.save_weights(Path(self.config.output))
        try:
            self.accelerator.save_state(str(folder))
        except RuntimeError as error:  # torch's writer raises it when the disk is full
            raise OSError(str(error)) from error
        save_file({k: v.contiguous() for k, v in self.average.weights.items()}, folder / _AVERAGE)

    def _step(self, step: int, data: Iterator[Any]) -> dict[str, Tensor]:
        config, accelerator = self.config, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate(step) * group["rate"]
        total: dict[str, Tensor] = {}
        finite = True
        for part in range(config.accumulation):
            generator = _generator(config.seed, step, part, accelerator.process_index)
            batch = self.stage.make_batch(next(data), generator, accelerator.device)
            with accelerator.accumulate(self.network):
                losses = self.network(batch)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.network.parameters(), config.clip_gradients or math.inf)
                    finite = bool(torch.isfinite(norm))  # the same on every process
                if finite:
                    self.optimiser.step()
                self.optimiser.zero_grad()
            for name, loss in losses.items():
                total[name] = total.get(name, torch.zeros_like(loss)).detach() + loss.detach() / config.accumulation
        if finite:
            self.average.update(step)
        self._track_skipped(finite, step + 1)
        return {name: accelerator.reduce(loss, "mean") for name, loss in total.items()}

    def _track_skipped(self, finite: bool, step: int) -> None:
        """Logs steps that were skipped for non-finite gradients. Raises InputError when too many follow each other."""
        self.skipped = 0 if finite else self.skipped + 1
        if finite:
            return
        _log.warning("Step %d was skipped: its gradients are not finite", step)
        self.average.restore_nonfinite()
        if self.skipped == _MAX_SKIPPED:
            raise InputError(
                f"The gradients of the last {_MAX_SKIPPED} steps, to step {step}, are not finite. Earlier states are "
                "unchanged. Choose a lower learning_rate, or fp32 as precision, in another output folder."
            )

    def _learning_rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        falling = min(1.0, (self.config.steps - step) / (self.config.cooldown_steps + 1))
        return self.config.learning_rate * min(rising, falling)

    def _draw_sheet(self) -> None:
        if self.accelerator.is_main_process:
            folder = Path(self.config.output) / "sheets"
            try:
                folder.mkdir(exist_ok=True)
                with self.average.in_place():
                    self.stage.draw_sheet(folder / f"step-{self.done:08d}.jpg", self.config.sample_steps)
            except (OSError, torch.cuda.OutOfMemoryError) as error:  # a sheet is not worth ending training for
                _log.warning("The sheet of step %d could not be made: %s", self.done, error)

    def _identity(self) -> dict[str, Any]:
        settings = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in _CHANGEABLE}
        return {**settings, _PROCESSES: self.accelerator.num_processes}  # it determines which process sees which data


@contextmanager
def _ignoring_tensorboard_errors(otherwise: Callable[[], None] = lambda: None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.warning("TensorBoard's file could not be written, and ends here: %s", error)
        otherwise()


def _parameter_groups(network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The optimiser's parameter groups: trainable parameters by their factor on the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    unused = set(rates)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts = [part for part in rates if name.startswith(part)]
            unused.difference_update(parts)
            groups.setdefault(rates[max(parts, key=len)] if parts else 1.0, []).append(parameter)
    if unused:
        parts = sorted({name.rpartition(".")[0] for name, _ in network.named_parameters()})
        raise InputError(
            f"rates names {', '.join(sorted(unused))}, but no trainable parameter begins so. Parts are "
            f"{', '.join(parts[:8])} and so on."
        )
    return [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]


def _generator(*numbers: int) -> torch.Generator:
    """A generator for one part of one step of one process."""
    import numpy as np

    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
