"""Weights of golden cases that are not stored: pseudo-random by formula, from a tensor's name and shape.

The seed is the FNV-1a hash of salt and name; values are splitmix64 of the flat index, made uniform in [-1, 1), then
scaled by the kind of tensor.
"""

from collections.abc import Mapping

import numpy as np
import torch

_MASK = (1 << 64) - 1


def _seed(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    index = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(_seed(name)) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def _value(name: str, shape: tuple[int, ...], gain: float, salt: str) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.array(1, dtype=np.int64)
    uniform = _uniform(salt + name, shape)
    if len(shape) >= 2:
        uniform = uniform * gain * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        uniform = 1 + 0.25 * uniform
    elif name.endswith(".weight"):
        uniform = 1 + 0.1 * uniform
    else:
        uniform = 0.1 * uniform
    return uniform.astype(np.float32)


def fill(network: torch.nn.Module, salt: str, gains: Mapping[str, float]) -> None:
    """Fills a network with the weights of its golden case. gains: part of a name -> gain of such matrices, else 1."""
    state = {}
    for name, tensor in network.state_dict().items():
        gain = next((gain for part, gain in gains.items() if part in name), 1.0)
        state[name] = torch.from_numpy(_value(name, tuple(tensor.shape), gain, salt))
    network.load_state_dict(state, strict=True)
