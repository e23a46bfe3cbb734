"""ComfyUI's progress bar and cancellation for long work."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.utils

_Item = TypeVar("_Item")


def one_by_one(items: Sequence[_Item]) -> Iterator[_Item]:
    """Yields the items with ComfyUI's progress bar; Cancel takes effect between them."""
    progress = comfy.utils.ProgressBar(len(items))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        progress.update(1)


def download_progress() -> Callable[[int, int], None]:
    """The progress callback for ``downloads.fetch``."""
    progress = comfy.utils.ProgressBar(1)

    def report(done: int, whole: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if whole:
            progress.update_absolute(done, whole)

    return report
