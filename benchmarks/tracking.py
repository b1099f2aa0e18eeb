"""What logging adds to a training step: the tracker's buffered points beside one MLflow call a log line, or a step.

    python benchmarks/tracking.py [--step-ms 100] [--json]

An sqlite store in a temporary folder; a step hands over 16 numbers, as a self-critical step does, and each tenth step
is a log line with readings of the machine. The arms take turns, round by round, and the sending of what is left in the
buffer counts. Shares are of a step of --step-ms: one of the toy world takes about 100 ms, one of MSR-VTT's size far
longer. --json puts one object on the last line.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROUNDS, STEPS, LOG_EVERY = 5, 100, 10
METRICS = {f"value_{n}": 0.5 for n in range(16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=100.0, help="length of a step")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        report = measure(options.step_ms)
    for name, arm in report.items():
        low, high = arm["range_cpu_ms"]
        print(
            f"{name:<28} {arm['cpu_ms']:8.3f} ms of CPU a step ({low:.3f} to {high:.3f}), "
            f"{100 * arm['share']:6.2f} % of it; {arm['wall_ms']:8.3f} ms by the clock"
        )
    if options.json:
        print(json.dumps(report))


def measure(step_ms: float) -> dict[str, Any]:
    """Milliseconds a step of each arm: median and range over the rounds, and the share of a step.

    The share is of CPU time, which other work on the machine changes little; the clock counts the disk, too.
    """
    import torch

    from videoblip2.tracking import RunSpec, open_run
    from videoblip2.training.meters import SystemMeter

    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    with open_run(RunSpec("ce", "benchmark", "benchmark")) as tracker:
        meter = SystemMeter(torch.device("cpu"))
        arms = {
            "buffered (this project)": buffered(tracker, meter),
            "a call a log line": direct(tracker.run_id, LOG_EVERY),
        }
        arms["a call a step"] = direct(tracker.run_id, 1)
        for number in range(ROUNDS):
            for name, arm in arms.items():
                start, used = time.perf_counter(), time.process_time()
                arm(number * STEPS)
                cpu.setdefault(name, []).append((time.process_time() - used) / STEPS * 1000)
                wall.setdefault(name, []).append((time.perf_counter() - start) / STEPS * 1000)
    return {
        name: {
            "cpu_ms": statistics.median(ms),
            "range_cpu_ms": [min(ms), max(ms)],
            "share": statistics.median(ms) / step_ms,
            "wall_ms": statistics.median(wall[name]),
        }
        for name, ms in cpu.items()
    }


def buffered(tracker: Any, meter: Any) -> Callable[[int], None]:
    """What the training loop does: means over an interval, readings of the machine, points into the buffer."""
    from videoblip2.training.meters import RunningMeans

    def run(first: int) -> None:
        window = RunningMeans()
        for step in range(first, first + STEPS):
            window.add(METRICS, 16)
            if step % LOG_EVERY == 0:
                tracker.log_metrics({**window.flush(), **meter.read()}, step)
        tracker.flush()

    return run


def direct(run_id: str, every: int) -> Callable[[int], None]:
    """MLflow's `log_metrics` of a run, at once."""
    import mlflow

    def run(first: int) -> None:
        for step in range(first, first + STEPS):
            if step % every == 0:
                values = {f"direct_{every}/{name}": value for name, value in METRICS.items()}
                mlflow.log_metrics(values, step, run_id=run_id)

    return run


if __name__ == "__main__":
    main()
