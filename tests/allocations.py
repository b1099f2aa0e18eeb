"""Counts the bytes of tensors that are alive, as the allocator would."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Inside, `now` and `peak` are the bytes of the storages that operations have made, and that are still alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakKeyDictionary()

    def know(self, tensors):
        """Tensors made before: they are not counted."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.know(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                size = storage.nbytes()
                self._known[storage] = None
                self.now += size
                weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        return made

    def _free(self, size):
        self.now -= size
