"""An exponential moving average of the weights, which is what gets saved: it changes less from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Of a network's parameters. With decay 0 it is the last weights."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = dict(network.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step in. Early on it follows faster, so that the start is soon forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Goes on from saved ones."""
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, the network has the averaged weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._set(self.weights)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
