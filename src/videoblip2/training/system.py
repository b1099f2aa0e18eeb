"""How hard the machine works: what goes into the `sys/` charts."""

from contextlib import suppress

import psutil
import torch

GIB = 2**30


class SystemMeter:
    """Readings of this process and its device, each since the one before; a reading takes well under a millisecond."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock

    def read(self) -> dict[str, float]:
        """Return `sys/memory_gib`, `sys/cpu_percent` (100 = one core) and, on a GPU, its memory and use."""
        readings = {
            "sys/memory_gib": self._process.memory_info().rss / GIB,
            "sys/cpu_percent": self._process.cpu_percent(),
        }
        return readings | (self._gpu() if self._device.type == "cuda" else {})

    def _gpu(self) -> dict[str, float]:
        """Peak memory since the last reading; the share of time at work where NVIDIA's library tells."""
        readings = {"sys/gpu_memory_gib": torch.cuda.max_memory_reserved(self._device) / GIB}
        torch.cuda.reset_peak_memory_stats(self._device)
        with suppress(ImportError, RuntimeError):  # no library, or one that knows no such figure on this device
            readings["sys/gpu_percent"] = float(torch.cuda.utilization(self._device))
        return readings
