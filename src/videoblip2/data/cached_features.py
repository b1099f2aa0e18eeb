"""Features in memory, as far as there is room."""

import os
from pathlib import Path
from typing import Protocol

from videoblip2.config import InputError
from videoblip2.modality import Features

MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class FeatureSource(Protocol):
    """Anything that gives features by video id, such as the feature store."""

    def features(self, video_id: str) -> Features:
        """float32 [L,C] of each modality that is read, the same ones for every video; L = 0 where a video lacks it."""


class CachedFeatures:
    """A FeatureSource that keeps what it has read, up to `megabytes` and to a quarter of the memory that is free now.

    A packed store is left to the operating system, which keeps its pages as long as nobody needs the room.
    """

    def __init__(self, source: FeatureSource, megabytes: int = 2048) -> None:
        self._source = source
        self._room = 0 if getattr(source, "packed", False) else min(megabytes * 2**20, free_memory() // 4)
        self._kept: dict[str, Features] = {}

    def features(self, video_id: str) -> Features:
        kept = self._kept.get(video_id)
        if kept is None:
            kept = self._read(video_id)
            size = sum(array.nbytes for array in kept.values())
            if size <= self._room:
                self._room -= size
                self._kept[video_id] = kept
        return kept

    def _read(self, video_id: str) -> Features:
        """What the source gives, or an error that names the video."""
        try:
            return self._source.features(video_id)
        except InputError:
            raise  # names it already
        except Exception as error:
            raise RuntimeError(f"features of {video_id}: {type(error).__name__}: {error}") from error


def free_memory() -> int:
    """Bytes: what the machine has to give away, or what a container's limit leaves, whichever is less."""
    return min([_machine(), *_container()])


def _machine() -> int:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container() -> list[int]:
    """What the control group's limit leaves, without cached files; empty where there is no limit (`max`)."""
    try:
        limit, used = (int((CONTROL_GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [max(0, limit - used + int(stat.get("inactive_file", 0)))]
