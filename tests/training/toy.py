"""A toy problem for the training loop alone: python toy.py OUTPUT STEPS [SLOW], or the same under torchrun."""

import sys
import time
from itertools import count, islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from dynamicid_core.training.config import LoopConfig
from dynamicid_core.training.loop import train

SIZE, BATCH = 4, 8


class Toy(nn.Module):
    """Learns to add numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(SIZE, 1)

    def forward(self, batch):
        """Losses by name."""
        return {"loss": (self.linear(batch) - batch.sum(dim=1, keepdim=True)).square().mean()}


class ToyStage:
    """See ``loop.Stage``. folder: gets a file for each batch made. slow: seconds per step."""

    def __init__(self, folder, slow=0.0):
        self.network, self.folder, self.slow = Toy(), folder, slow

    def raw_batches(self, process, processes, skip=0):
        """The seeds of batches."""
        return islice(count(), process + skip * processes, None, processes)

    def make_batch(self, raw, generator, device):
        """Random numbers by seed."""
        (self.folder / f"batch-{raw}").touch()
        time.sleep(self.slow)
        return torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(raw)).to(device)

    def save_weights(self, folder):
        """toy.safetensors"""
        save_file(self.network.state_dict(), folder / "toy.safetensors")

    def draw_sheet(self, path, steps):
        """Nothing to draw."""


def settings(output, steps, **changes):
    """The settings of a run."""
    given = {"sample_every": 0, "save_every": 0, "learning_rate": 0.1, "warmup_steps": 0, **changes}
    return LoopConfig(output=str(output), steps=steps, **given)


if __name__ == "__main__":
    try:
        output, steps, slow = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
        train(ToyStage(output, slow), settings(output, steps), cpu=True)
    except KeyboardInterrupt:
        sys.exit(130)
