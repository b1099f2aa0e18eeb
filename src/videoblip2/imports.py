"""Import torch and transformers without what inference does not need: half of the CPU time of one caption.

`transformers.modeling_utils` imports scipy, distributed tensors and torch's compiler, and transformers reads its 3,000
files twice to list its models. Everything patched meanwhile is restored. experiments/README.md has the measurements.
"""

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def import_transformers() -> None:
    """Import peft and transformers' base model class this way or, if a version does not allow it, as usual."""
    if "transformers" in sys.modules:
        return
    compiler = ModuleType("torch._dynamo")  # only its decorators are used, for paged attention and the like
    vars(compiler).update(dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), _unmarked))
    indexing = SimpleNamespace(TransformGetItemToIndex=_transform_indices)
    absent: dict[str, Any] = {"scipy": None, "trio": None}
    if "torch._dynamo" not in sys.modules:
        absent |= {"torch._dynamo": compiler, "torch._dynamo._trace_wrapped_higher_order_op": indexing}
    gc.disable()  # importing leaves no garbage, and collection would take a tenth of the time
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
    """Import `transformers.models` and reuse transformers' list of it; its own cache is too small for that."""
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
    """Within the block, give entries of `names` these values."""
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        for name in values:
            del names[name]
        names.update(before)


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """torch works with this many threads on the CPU inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LightMeta(TorchFunctionMode):
    """`torch.device("meta")` without torch's Python kernels, which import sympy and the compiler.

    Position ids (from `arange`) are on the CPU, and random weights are not drawn.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        tensor: Any = args[0] if args else options.get("tensor")
        there = isinstance(tensor, torch.Tensor) and tensor.is_meta
        if there and func.__name__ in ("normal_", "uniform_"):
            return tensor
        if there and func is torch.empty_like:
            return torch.empty(tensor.shape, **{"dtype": tensor.dtype, "device": "meta", **options})
        if str(options.get("device")) == "meta" and func in (torch.randn, torch.arange):
            return torch.empty(*args, **options) if func is torch.randn else func(*args, **{**options, "device": "cpu"})
        return func(*args, **options)


@cache
def hub_answers(source: str) -> bool:
    """Whether the hub is there to be asked for a repository: one request, where transformers would try for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    if Path(source).is_dir():
        return False
    try:
        HfApi().model_info(source, timeout=10)
    except (HTTPError, OSError, ValueError) as error:
        return isinstance(error, HfHubHTTPError)  # its refusal, which transformers explains
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load through transformers without its progress bars and warnings; restore the caller's settings afterwards."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    level, bars, retries = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.get_verbosity()
    logging.set_verbosity_error()
    hub.set_verbosity_error()  # offline, it logs each attempt
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub.set_verbosity(retries)
        if bars:
            logging.enable_progress_bar()
