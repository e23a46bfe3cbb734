"""An exponential moving average of the weights, which is what gets saved: it changes less from step to step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Of a network's parameters, and of its buffers with fractions: what batch normalisation measures belongs to its
    weights. With decay 0 it is the last weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        buffers = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        self._tensors: dict[str, Tensor] = {**dict(network.named_parameters()), **buffers}
        self.weights = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step in. Early on it follows faster, so that the start is soon forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._tensors.items():
            self.weights[name].lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def restore_nonfinite(self) -> None:
        """Puts the average in the place of what is no number any more, as batch normalisation's after such a batch."""
        for name, tensor in self._tensors.items():
            if not tensor.isfinite().all():
                tensor.copy_(self.weights[name])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Goes on from saved ones."""
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, the network has the averaged weights."""
        kept = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._set(self.weights)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(weights[name])
