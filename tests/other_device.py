"""A device that is none: tensors on `meta` that have values. A CPU tensor among them is a fault, as on a GPU.

So a machine without a GPU can tell whether code puts every tensor where it belongs, and runs it to its result. What a
GPU's own kernels would say, it cannot. Not a test itself.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MAY_MIX = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operators that take CPU tensors beside a GPU's."""
HERE = torch.device("meta")


def there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == HERE.type


class _Made(TorchFunctionMode):
    """torch fills no meta tensor that it makes of numbers: here such numbers are first a CPU tensor."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(kwargs["device"])
        if function in (Tensor.__getitem__, Tensor.__setitem__) and there(args[0]):
            tensor, index, *rest = args
            parts = [torch.tensor(i, dtype=torch.long) if isinstance(i, list) else i for i in _tuple(index)]
            return function(tensor, tuple(parts) if isinstance(index, tuple) else parts[0], *rest)
        return function(*args, **kwargs)


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


class OtherDevice(TorchDispatchMode):
    """While entered, meta tensors have values: each storage a CPU tensor that is computed on in its place."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self._made = _Made()

    def __enter__(self) -> OtherDevice:
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._made.__exit__(kind, error, trace)

    def value(self, tensor: Tensor) -> Tensor:
        """The CPU tensor behind one of the device's, a view where that is one."""
        found = self._values.get(tensor.untyped_storage()._cdata)
        if found is None:
            raise RuntimeError(f"A meta tensor of {tuple(tensor.shape)} has no values.")
        return found[0].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def keep(self, value: Any) -> Any:
        """A tensor of the device with these values."""
        if not isinstance(value, Tensor):
            return value
        own = value.contiguous()
        own = own.clone() if own.storage_offset() or own._is_view() else own
        tensor = torch.empty_strided(own.size(), own.stride(), dtype=own.dtype, device=HERE)
        self._values[tensor.untyped_storage()._cdata] = own, tensor.untyped_storage()  # held, so that none is reused
        return tensor

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        here, device = any(map(there, tensors)), kwargs.get("device")
        if not here and (device is None or torch.device(device).type != HERE.type):
            return op(*args, **kwargs)
        name = op._schema.name.removeprefix("aten::")
        strangers = [tuple(t.shape) for t in tensors if t.device.type == "cpu" and t.dim()]
        if here and strangers and name not in MAY_MIX:
            raise RuntimeError(f"{name} finds CPU tensors among the device's: {strangers}.")
        returns = op._schema.returns
        if here and returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return op(*args, **kwargs)  # a view is made of the tensor itself
        leaves = device is not None and torch.device(device).type == "cpu"
        known: dict[int, tuple[Tensor, Tensor]] = {}

        def inside(leaf: Any) -> Any:
            if not there(leaf):
                return leaf
            value = self.value(leaf)
            known[id(value)] = value, leaf
            return value

        computed = kwargs | ({"device": torch.device("cpu")} if device is not None else {})
        out = op(*tree_map(inside, args), **tree_map(inside, computed))
        for value, tensor in known.values():
            assert value.shape == tensor.shape, f"{name} resizes what it writes to"
        return tree_map(lambda o: known[id(o)][1] if id(o) in known else o if leaves else self.keep(o), out)
