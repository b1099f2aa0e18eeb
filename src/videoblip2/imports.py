"""Import transformers for inference: without scipy, distributed tensors and torch's compiler, which nothing here uses.

`transformers.modeling_utils` imports all of them, and transformers reads its 3,000 files twice to list its models: half
of the CPU time of one caption (experiments/README.md). What is replaced meanwhile is put back.
"""

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def import_transformers() -> None:
    """Import peft and transformers' base of all models in this way; where a version does not allow it, as usual."""
    if "transformers" in sys.modules:
        return
    import torch

    compiler = ModuleType("torch._dynamo")  # only its decorators are used, for paged attention and its like
    vars(compiler).update(dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), _unmarked))
    indexing = SimpleNamespace(TransformGetItemToIndex=_transform_indices)
    absent: dict[str, Any] = {"scipy": None, "trio": None}
    if "torch._dynamo" not in sys.modules:
        absent |= {"torch._dynamo": compiler, "torch._dynamo._trace_wrapped_higher_order_op": indexing}
    gc.disable()  # importing leaves no garbage, and looking for it would be a tenth of the time
    try:
        with (
            _replaced(sys.modules, {name: module for name, module in absent.items() if name not in sys.modules}),
            _replaced(vars(torch), {"_dynamo": absent.get("torch._dynamo") or torch._dynamo}),
            _replaced(vars(torch.distributed), {"is_available": lambda: False}),
        ):
            _list_models_once()
            for name in ("peft", "transformers.masking_utils", "transformers.modeling_utils"):
                import_module(name)
    except (AttributeError, ImportError):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("peft", "transformers")]:
            del sys.modules[name]
    finally:
        gc.freeze()
        gc.enable()


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    return function or (lambda other: other)


def _transform_indices() -> Any:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


def _list_models_once() -> None:
    """Import `transformers.models` with the list that transformers made of it; its own cache is too small for that."""
    import transformers
    from transformers.utils import import_utils

    models, listed = Path(transformers.__file__).parent / "models", import_utils.define_import_structure
    inside = {
        needs: {name.removeprefix("models."): what for name, what in files.items()}
        for needs, files in listed(models, prefix="models").items()
    }

    def known(path: str, prefix: str | None = None) -> Any:
        return inside if Path(path) == models / "__init__.py" else listed(path, prefix)

    with _replaced(vars(import_utils), {"define_import_structure": known}):
        import_module("transformers.models")


@contextmanager
def _replaced(names: dict[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Names of a module, or modules, have other values inside the block."""
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        for name in values:
            del names[name]
        names.update(before)
