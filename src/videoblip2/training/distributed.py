"""Data-parallel training, with processes started by torchrun, `--nproc` or Ray; one process is the trivial case.

Each process takes its share of a batch, and gradients and metrics are summed, so that the result does not depend on
their number. Only the leader (rank 0) writes, prints and talks to MLflow. If a process ends, communication with it
fails at once and ends the others.
"""

import json
import logging
import os
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import astuple, dataclass
from functools import cache
from io import StringIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from videoblip2.errors import first_line, one_line
from videoblip2.tracking import FoundModel, find_model
from videoblip2.tracking.tracker import Terminated

Made = TypeVar("Made")
#: Gradients are summed in buffers of about this many numbers.
BUCKET = 2**24


class Lost(SystemExit):
    """Another process has ended, so this one must end too; the state is saved as on any other stop.

    why: the error that the other reported, if any.
    """

    def __init__(self, why: str | None) -> None:
        super().__init__(1)
        self.why = why


@dataclass(frozen=True)
class World:
    """The processes of a training run. store: shared by them, to decide which reports an error."""

    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's share of `count` rows."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank; it must survive JSON."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._all_alive():
            distributed.all_gather(sizes, torch.tensor([len(data)]))
            parts = [data.new_empty(int(max(sizes))) for _ in sizes]
            distributed.all_gather(parts, functional.pad(data, (0, len(parts[0]) - len(data))))
        return [json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def first(self, make: Callable[[], Made]) -> Made:
        """Return to every process what the leader makes."""
        made: Made = self.gather(make() if self.leads else None)[0]
        return made

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Concatenate the rows of all processes, by rank; one entry per row in each column."""
        return [list(chain.from_iterable(column)) for column in zip(*self.gather(columns), strict=True)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        with self._all_alive():
            distributed.all_reduce(total)
        return total

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; sharded gradients are summed already."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        waiting = [gradient for gradient in gradients if not hasattr(gradient, "full_tensor")]
        while self.size > 1 and waiting:
            bucket = [waiting.pop()]
            while waiting and sum(map(Tensor.numel, bucket)) < BUCKET:
                bucket.append(waiting.pop())
            total = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, total.split([*map(Tensor.numel, bucket)]), strict=True):
                gradient.copy_(part.view_as(gradient))

    @contextmanager
    def _all_alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = self.told_before("")
            if reason is None:
                why = first_line(error).rpartition("] ")[2].partition(". ")[0]  # without gloo's source location
                print(f"error: another of the {self.size} processes has ended ({why})", file=sys.stderr, flush=True)
            raise Lost(reason) from error

    def told_before(self, why: str) -> str | None:
        """Tell all why this process ends ("" if not by an error); return what another told before, if any."""
        mine = f"{self.rank} {why}"
        try:
            first = self.store.compare_set("videoblip2/told", "", mine).decode() if self.store else mine
        except RuntimeError:  # the store is gone too
            return None
        return None if first == mine else first.partition(" ")[2]


@cache
def join() -> World:
    """Join the processes that a launcher started (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT)."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World()
    if not distributed.is_initialized():  # Ray initializes it
        distributed.init_process_group(backend())
    store = distributed.distributed_c10d._get_default_store()
    return World(distributed.get_rank(), distributed.get_world_size(), store)


def find_together(model: str) -> FoundModel:
    """What MODEL names on rank 0, for all processes: an alias may move between two calls."""
    folder, version = join().first(lambda: [str(part) for part in astuple(find_model(model))])
    return FoundModel(Path(folder), version)


def backend() -> str:
    """NCCL for tensors on a GPU, gloo for all others."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def sharing_errors() -> Iterator[None]:
    """Run a block in several processes: the first error is raised, and the others end silently."""
    try:
        yield
    except BaseException as error:
        reason = join().told_before(one_line(error) if isinstance(error, Exception) else "")
        if reason is not None and isinstance(error, Exception):
            raise Lost(reason) from error
        raise


def launch(words: Sequence[str], count: int, restarts: int = 0) -> None:
    """Run `vb2` with these arguments in `count` local processes; exit with the status of the first that fails.

    A signal ends all of them, and raises Terminated.

    Args:
        restarts: how often all processes are restarted, to resume training, if one fails.
    """
    import signal

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("elastic", "elastic.agent.server.api"):  # each process reports its own error
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    name = f"vb2-{os.getpid()}"
    config = LaunchConfig(
        1, 1, count, run_id=name, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts
    )
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in config.signals_to_handle.split(",")}
    try:
        elastic_launch(config, sys.executable)("-m", "videoblip2", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from error
        sent = signal.Signals(-failure.exitcode).name  # Python prints the text and exits with 1
        raise SystemExit(f"error: process {rank} of {count} was killed by {sent}") from error
    except SignalException as stop:
        raise Terminated(128 + stop.sigval) from stop
    finally:
        for name, handler in handlers.items():  # the launcher leaves its own handlers
            signal.signal(getattr(signal, name), handler)


class Starts(Counter[int]):
    """A Ray actor that counts the earlier starts of each process."""

    def add(self, rank: int) -> int:
        self[rank] += 1
        return self[rank] - 1


def launch_on_ray(words: Sequence[str], count: int, restarts: int = 0) -> None:
    """Run `vb2` with Ray Train, on a running Ray or a local one. Prints the leader's output.

    Each process runs `vb2` in this folder, which all machines see under one path, on its own GPU if Ray has enough.
    """
    from videoblip2.jobs.ray import require_ray

    require_ray()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR)
    folder, make = os.getcwd(), ray.remote(Starts)
    starts: Any = make.options(num_cpus=0).remote()

    def work() -> Any:
        os.chdir(folder)
        earlier = ray.get(starts.add.remote(get_context().get_world_rank()))
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(earlier)
        return _printed(words)

    processes = ScalingConfig(num_workers=count, use_gpu=ray.cluster_resources().get("GPU", 0) >= count)
    with TemporaryDirectory() as empty:  # Ray stores nothing: checkpoints and states belong to the run
        kept = RunConfig(storage_path=empty, failure_config=FailureConfig(max_failures=restarts))
        trainer: Any = TorchTrainer(
            work, torch_config=TorchConfig(backend()), scaling_config=processes, run_config=kept
        )
        try:
            print(trainer.fit().return_value, end="")
        except WorkerGroupError as error:
            rank, failure = next(iter(error.worker_failures.items()))
            print(f"error: process {rank} of {count}: {first_line(failure)}", file=sys.stderr, flush=True)
            raise SystemExit(1) from error


def _printed(words: Sequence[str]) -> str:
    sys.argv = ["vb2", *words]
    with redirect_stdout(StringIO()) as printed:
        try:
            runpy.run_module("videoblip2", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"exit code {end.code}") from end
    return printed.getvalue()
