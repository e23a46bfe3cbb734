"""An exponential moving average (EMA) of the weights, which is what gets saved: it varies less from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a network's parameters and floating-point buffers, since batch normalisation's statistics belong
    to its weights. With decay 0 it is the latest weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        buffers = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        self._tensors: dict[str, Tensor] = {**dict(network.named_parameters()), **buffers}
        self.weights = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step. The decay is lower early on, so that the initial weights soon fade."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._tensors.items():
            self.weights[name].lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def restore_nonfinite(self) -> None:
        """Replaces tensors that are not finite with the average, such as batch normalisation's after a bad batch."""
        for name, tensor in self._tensors.items():
            if not tensor.isfinite().all():
                tensor.copy_(self.weights[name])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continues from saved averages."""
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context, the network has the averaged weights."""
        current = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._set(self.weights)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(weights[name])
