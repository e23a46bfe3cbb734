"""A pretended device, for machines that have only a CPU: operations that mix both fail, as on CUDA and MPS.

It uses the name "meta", which every build of PyTorch has, but computes: its tensors wrap CPU tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_BETWEEN_DEVICES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED_FROM_ANYWHERE = {  # their indices may be on the CPU, on CUDA too
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class PretendTensor(torch.Tensor):
    """Claims to be on DEVICE. ``held`` is the CPU tensor with its values."""

    @staticmethod
    def __new__(cls, held):
        where = {"strides": held.stride(), "storage_offset": held.storage_offset(), "device": DEVICE}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, **where)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"PretendTensor({self.held})"

    def tolist(self):
        """PyTorch implements none for such classes."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Within the context, DEVICE is a device."""
    with _FromData(), _FromNothing():
        yield DEVICE


class _FromNothing(TorchDispatchMode):
    """Lets factory functions make tensors on DEVICE."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """Lets tensors be made on DEVICE from values, which PyTorch would discard."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _with_tensors(args[1]), *args[2:])
        if function is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            function, args = torch.tensor, args[1:]
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


def _run(operation, args, kwargs):
    if operation is _aten._has_compatible_shallow_copy_type.default:
        return False  # so that networks take the moved parameters
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = any(isinstance(one, PretendTensor) for one in tensors)
    if there and operation not in _BETWEEN_DEVICES:
        _refuse_mixtures(operation, tree_leaves(args[:1]) if operation in _INDEXED_FROM_ANYWHERE else tensors)
    if any(one.is_meta and not isinstance(one, PretendTensor) for one in tensors):
        raise RuntimeError(f"{operation}: a tensor got onto the device without its values")
    device = kwargs.get("device")
    if device is not None:
        there, kwargs = _is_there(device), {**kwargs, "device": torch.device("cpu")}
    elif any(isinstance(one, torch.device) for one in args):  # in inference mode, Tensor.to comes as it was called
        there = any(isinstance(one, torch.device) and _is_there(one) for one in args)
        args = tuple(torch.device("cpu") if isinstance(one, torch.device) else one for one in args)
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{operation}: expected a generator of the device, but it is on the CPU")
    result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if _writes_into_first(operation):
        return args[0]
    return tree_map(_there, result) if there else result


def _writes_into_first(operation):
    first = operation._schema.arguments[:1]
    return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write


def _refuse_mixtures(operation, operands):
    for one in operands:
        # Scalars may come from any device.
        if isinstance(one, torch.Tensor) and not isinstance(one, PretendTensor) and one.ndim > 0:
            raise RuntimeError(f"{operation}: expected all tensors on the same device, but one is on the CPU")


def _is_there(device):
    return device is not None and torch.device(device).type == DEVICE.type


def _with_tensors(index):
    """An index with tensors in place of lists, of which PyTorch would make tensors on "meta"."""
    if isinstance(index, list):
        return torch.tensor(index)
    if isinstance(index, tuple):
        return tuple(torch.tensor(one) if isinstance(one, list | tuple) else one for one in index)
    return index


def _held(one):
    return one.held if isinstance(one, PretendTensor) else one


def _there(one):
    return PretendTensor(one) if isinstance(one, torch.Tensor) else one
