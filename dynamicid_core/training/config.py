"""Settings of a training run, from a YAML file."""

import difflib
import math
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml

from ..checkpoint import VARIANTS
from ..errors import InputError

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the training loop, whatever it trains.

    output: folder for weights, states, curves and sheets. steps: of the whole run. batch_size: what a device sees at
    once; accumulation: how many of those make one step; the keypoint encoder's batch
    normalisation measures each by itself. learning_rate, weight_decay: of AdamW. warmup_steps: over which
    the learning rate rises; cooldown_steps: the last ones, over which it falls to 0. rates: how many times faster parts
    of the network learn, by how the names of their parameters begin. ema_decay: of the averaged weights that are saved,
    0 for none. precision: "bf16" computes in bfloat16 where that is safe. seed: of chance and of the order of data.
    save_every, sample_every, log_every: steps; 0 for never. sample_steps: of the sampler, for the sheets.
    clip_gradients: their longest length, 0 for any. keep: how many states to keep.
    """

    output: str
    steps: int = 100_000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 500
    cooldown_steps: int = 0
    clip_gradients: float = 1.0
    ema_decay: float = 0.999
    precision: str = "fp32"
    seed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    log_every: int = 10
    save_every: int = 1000
    sample_every: int = 1000
    sample_steps: int = 20
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.precision in PRECISIONS, f'precision is "{self.precision}"; choose {" or ".join(PRECISIONS)}')
        for name in ("steps", "batch_size", "accumulation", "sample_steps", "keep"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for setting in fields(self):
            value = getattr(self, setting.name)
            infinite = isinstance(value, float) and not math.isfinite(value)
            _require(not infinite, f"{setting.name} is {value}; it must be finite")
        _require(self.seed < 2**63, f"seed is {self.seed}; it must be less than 2 to the power of 63")
        for name in (
            "weight_decay", "warmup_steps", "cooldown_steps", "clip_gradients", "seed", "log_every", "save_every",
            "sample_every",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative")
        _require(self.learning_rate > 0, f"learning_rate is {self.learning_rate:g}; it must be more than 0")
        for part, rate in self.rates.items():
            _require(isinstance(part, str), f"rates has {part!r}; it must be a prefix of parameter names")
            valid = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < math.inf
            _require(valid, f"rates has {rate!r} for {part}; it must be a number greater than 0")
        _require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay:g}; it must be from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """The files that either stage reads.

    data: folder of shards (training.data). base_model, clip_vision: files of a UNet checkpoint and of a CLIP vision
    model. gradient_checkpointing: trades time for memory.
    """

    data: str
    base_model: str
    clip_vision: str
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class AnchorSettings(LoopConfig):
    """Anchoring (paper section 3.4): face encoder and SAA on pictures of single people.

    start_from: an adapter file to start from, else new weights. variant: the kind of adapter (see
    ``checkpoint.Variant``); "" for that of ``start_from``, or DynamicID for new weights. rank: of the low-rank updates
    of new weights. threshold: of the gate while training; 0 in the paper.
    drop_text, drop_face, drop_both: shares of pictures that train without them. other_clothes: share of the photos that
    CLIP sees with the shoulders of another photo, so that clothes come from the text.
    """

    start_from: str = ""
    variant: str = ""
    rank: int = 128
    threshold: float = 0.0
    drop_text: float = 0.05
    drop_face: float = 0.05
    drop_both: float = 0.05
    other_clothes: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_variant(self.variant)
        _require(self.rank >= 1, f"rank is {self.rank}; it must be at least 1")
        _require(0 <= self.threshold < 1, f"threshold is {self.threshold:g}; it must be from 0 to below 1")
        shares = (self.drop_text, self.drop_face, self.drop_both)
        _require(min(shares) >= 0 and sum(shares) <= 1, "the drop shares must be 0 or more and add up to at most 1")
        _require(0 <= self.other_clothes <= 1, f"other_clothes is {self.other_clothes:g}; it must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class AnchorConfig(RunConfig, AnchorSettings):
    """Anchoring on models from files."""


@dataclass(frozen=True, kw_only=True)
class ReconfigureSettings(LoopConfig):
    """Reconfiguration (paper section 3.4): IMR and keypoint encoder, with the anchored adapter frozen.

    adapter: its file; variant: as when anchoring. imr, keypoint_encoder: files to go on from, else new weights: of
    the given size, depth and queries, and with so many features and that width.
    targets: photos of the same person that each source is edited towards. diffusion_weight: lambda, how much the
    diffusion consistency counts beside the features; diffusion_share: of the batches, which alone are seen by the UNet,
    the slow part. threshold: of the gate while the UNet looks, as the adapter will be used.
    """

    adapter: str
    variant: str = ""
    imr: str = ""
    keypoint_encoder: str = ""
    size: int = 1024
    depth: int = 1
    queries: int = 4
    features: int = 768
    width: int = 16
    targets: int = 4
    diffusion_weight: float = 1.0
    diffusion_share: float = 1.0
    threshold: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_variant(self.variant)
        for name in ("targets", "depth", "queries", "features", "width"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        _require(self.size % 64 == 0 and self.size > 0, f"size is {self.size}; it must be a multiple of 64")
        _require(self.diffusion_weight >= 0, "diffusion_weight must not be negative")
        _require(0 <= self.threshold < 1, f"threshold is {self.threshold:g}; it must be from 0 to below 1")
        _require(0 <= self.diffusion_share <= 1, f"diffusion_share is {self.diffusion_share:g}; it must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ReconfigureConfig(RunConfig, ReconfigureSettings):
    """Reconfiguration on models from files."""


Config = TypeVar("Config", bound=RunConfig)


def load_config(path: str | Path, kind: type[Config]) -> Config:
    """Reads a YAML file of settings. Raises InputError that names a setting that is missing, unknown or wrong."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no config file {path}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: text that is not UTF-8, or a date that does not exist. RecursionError: lists in lists without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold lines such as steps: 1000; found {type(values).__name__}.")
    try:
        return kind(**_checked(values, kind))
    except InputError as error:
        raise InputError(f"{error} ({path})") from error


def _checked(values: dict[str, Any], kind: type[Config]) -> dict[str, Any]:
    known = {setting.name: setting for setting in fields(kind)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it can be one of {', '.join(known)}"
            raise InputError(f'There is no setting "{name}"; {hint}')
    missing = [name for name, setting in known.items() if _is_required(setting) and name not in values]
    if missing:
        raise InputError(f"The setting {' and '.join(missing)} is missing")
    return {name: _typed(name, value, known[name].type) for name, value in values.items()}


def _is_required(setting: Field[Any]) -> bool:
    return setting.default is MISSING and setting.default_factory is MISSING


def _typed(name: str, value: Any, wanted: Any) -> Any:
    wanted = get_origin(wanted) or wanted
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float:
        value = _number(value)
    if wanted is dict and isinstance(value, dict):
        return {part: _number(rate) for part, rate in value.items()}
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{name} is {value!r}; it must be of type {wanted.__name__}")
    return value


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _require_variant(name: str) -> None:
    _require(name in ("", *VARIANTS), f'variant is "{name}"; choose one of {", ".join(VARIANTS)}')


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
