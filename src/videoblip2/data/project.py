"""`vb2 data init`: a folder with all that training on one's own videos needs, sized to their number."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from videoblip2.config import Config, load_config
from videoblip2.data.prepare import PrepareReport, prepare_captions
from videoblip2.errors import InputError, counted
from videoblip2.files import segment_of, write_text
from videoblip2.overrides import overridden, read_yaml

WEIGHTS = "blip2-flant5xl"
LEAST = {"train": 1, "validate": 2}  # videos; the CIDEr of a single one is 0 by definition
#: Stage → times that training sees each video, the smallest and the largest number of steps, validations.
LENGTHS = {"ce": (100, 200, 20_000, 20), "scst": (20, 100, 8_000, 10)}


@dataclass(frozen=True)
class Project:
    """What was written. `unannotated`: videos of the folder that the tables do not mention."""

    prepared: PrepareReport
    unannotated: int
    files: tuple[str, ...]
    commands: tuple[str, ...]


def make_project(
    out: Path, videos: Sequence[str], video_ids: Collection[str], tables: Sequence[str | Path], split: str = "auto"
) -> Project:
    """Write annotations of the videos that exist, the commands to run, and a configuration of each stage.

    videos: the files and folders as the user named them, for the commands; video_ids: the videos in them.
    Raises InputError where a project exists already, and where too few videos are left to train or to validate on.
    """
    data, configs = out / "data", {stage: out / f"{stage}.yaml" for stage in LENGTHS}
    if there := [str(path) for path in configs.values() if path.exists()]:
        raise InputError(f"{there[0]}: exists already; choose another --out, or delete it")
    report = prepare_captions(tables, data, split, keep=lambda video: segment_of(video)[0] in video_ids)
    if few := [name for name, least in LEAST.items() if report.videos.get(name, 0) < least]:
        found = f"{counted(len(video_ids), 'video')} found, {len(report.without_features)} others only in the table"
        needs = f"fewer than {LEAST[few[0]]} to {few[0]} on ({found}); add videos, or a column `split`"
        raise InputError(f"{', '.join(map(str, tables))}: {needs}")
    for stage, path in configs.items():
        write_text(path, _configuration(stage, path, report, out))
        load_config(path)
    wanted = [word for file in report.files.values() for word in ("--annotations", file)]
    first = shlex.join(["vb2", "features", "extract", *videos, "--out", str(out / "features"), *wanted])
    commands = (first, f"vb2 weights fetch {WEIGHTS}", shlex.join(["vb2", "ce", str(configs["ce"])]))
    later = f"{shlex.join(['vb2', 'scst', str(configs['scst'])])} train.start_from=CE_RUN  # the run that vb2 ce prints"
    write_text(out / "commands.sh", "\n".join([*commands, f"# {later}", ""]))
    known = sum(report.videos.values()) + sum(report.uncaptioned.values()) + report.unassigned
    files = (*report.files.values(), *map(str, configs.values()), str(out / "commands.sh"))
    return Project(report, max(0, len(video_ids) - known), files, commands)


def _configuration(stage: str, path: Path, report: PrepareReport, out: Path) -> str:
    """The shipped configuration for one's own videos, with these paths and lengths."""
    base, videos = read_yaml(f"own_{stage}"), report.videos["train"]
    seen, least, most, validations = LENGTHS[stage]
    batch = min(base["train"]["batch_size"] * (1 if videos < 2000 else 2), videos)
    steps = min(max(seen * videos // batch, least), most)
    sized = {"train.steps": steps, "train.batch_size": batch, "train.validate_every": steps // validations}
    sized |= {"data.annotations": out / "data", "data.features": out / "features", "run.out": out / "runs"}
    sized |= {"optim.warmup_steps": steps // 20}
    if stage == "ce":
        sized["data.captions_per_video"] = min(2, report.captions["train"] // videos)
    content = overridden(base, [f"{key}={value}" for key, value in sized.items()], Config)
    start = " train.start_from=CE_RUN" if stage == "scst" else ""
    head = f"# Sized to {counted(videos, 'training video')} by `vb2 data init`. Run `vb2 {stage} {path}{start}`.\n"
    return head + yaml.safe_dump(content, sort_keys=False)
