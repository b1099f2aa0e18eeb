"""From the words of a user to the sides of a comparison: which runs, which seeds belong together, what differs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from videoblip2.captions.predictions import Kind
from videoblip2.config import InputError
from videoblip2.tracking.compare import Comparison, Side, compare_sides
from videoblip2.tracking.mlflow.run_records import (
    SPLITS,
    TRAINED_BY,
    RunRecord,
    find_run,
    read_logged,
    rows_of,
    seeds_of,
)

#: Configuration that says where and what for, not what was computed.
PLACES = ("run.", "train.resume", "train.save_every", "train.probe_videos", "device")
#: Tags and data that tell runs apart beside their configuration.
FACTS = {"stage": "stage", "lineage.parent_name": "started from"}
NOTHING = "—"
KINDS: tuple[Kind, ...] = ("captions", "answers")
REMEDY = "make them with `vb2 evaluate {0} --split {1}`"

Group = tuple[str, list[RunRecord]]
Sources = Mapping[str, Mapping[tuple[Kind, str], tuple[str, str]]]  # run id → see `rows_of`


def compare_runs(words: Sequence[str], split: str | None = None, resamples: int = 10_000) -> Comparison:
    """Compare the runs that `words` name; the seeds of one configuration are one side.

    Args:
        words: run ids, their beginnings, or names; a parent that `--seeds` made stands for its runs.
        split: val or test; none = val where every run has its captions or its answers, else test.

    Runs of a mixture are compared by their captions, and by their answers in `Comparison.answers`.
    Raises InputError for a word that names no run, for fewer than two different ones, and for runs that have nothing of
    the split in common.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"split {split!r}: not one of {', '.join(SPLITS)}")
    groups = _groups([find_run(word) for word in dict.fromkeys(words)])
    if len({run.run_id for _, runs in groups for run in runs}) < 2 or len(groups) < 2:
        raise InputError(f"{' '.join(words)}: one side only; name two runs or more, see `vb2 runs list`")
    sources = {run.run_id: rows_of(run) for _, runs in groups for run in runs}
    chosen = split or _common_split(sources, groups)
    found = [_compare(kind, chosen, groups, sources, resamples) for kind in _common_kinds(sources, chosen, groups)]
    return replace(found[0], answers=found[1]) if len(found) > 1 else found[0]


def _compare(kind: Kind, split: str, groups: Sequence[Group], sources: Sources, resamples: int) -> Comparison:
    sides = [
        Side(name, tuple(runs), tuple(read_logged(kind, *sources[run.run_id][kind, split]) for run in runs))
        for name, runs in groups
    ]
    return compare_sides(split, sides, differences(sides), resamples)


def differences(sides: Sequence[Side]) -> list[tuple[str, tuple[str, ...]]]:
    """What differs: facts first (stage, data, source), then configuration keys, with each side's value as text."""
    columns = [_together(_facts(run) for run in side.runs) for side in sides]
    any_seed = any(len(side.runs) > 1 for side in sides)
    configs = [_together(_config(run, any_seed) for run in side.runs) for side in sides]
    return [*_rows(columns), *_rows(configs)]


def _groups(records: Sequence[RunRecord]) -> list[Group]:
    """Parents as their seeds; then runs that differ in nothing but the seed together, if two sides are left."""
    groups: list[Group] = []
    for record in records:
        runs = [run for run in seeds_of(record) if run.status == "FINISHED"] or [record]
        groups.append((record.name, runs))
    merged: dict[object, Group] = {}
    for name, runs in groups:
        key = (runs[0].stage, runs[0].tags.get("split"), *sorted(_config(runs[0], True).items()))
        there = merged.get(key)
        merged[key] = (_shared_name(there[0], name), [*there[1], *runs]) if there else (name, runs)
    return _distinct(list(merged.values()) if len(merged) > 1 else groups)


def _shared_name(first: str, second: str) -> str:
    """What both names begin with: `ce-seed0`, `ce-seed1` → `ce`."""
    same = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:same].removesuffix("seed").rstrip("-_ ") or first


def _distinct(groups: list[Group]) -> list[Group]:
    """Runs with the same name get the beginning of their id, so that two columns never look alike."""
    names = [name for name, _ in groups]
    return [(name if names.count(name) == 1 else f"{name} {runs[0].run_id[:6]}", runs) for name, runs in groups]


def _common_split(sources: Sources, groups: Sequence[Group]) -> str:
    for split in SPLITS:
        if any(all((kind, split) in found for found in sources.values()) for kind in KINDS):
            return split
    has = "; ".join(
        f"{name} has {' and '.join(f'{kind} of {split}' for kind, split in sources[run.run_id]) or 'none'}"
        for name, runs in groups
        for run in runs
    )
    raise InputError(f"no split whose captions or answers every run has ({has}); {REMEDY.format('RUN', 'val')}")


def _common_kinds(sources: Sources, split: str, groups: Sequence[Group]) -> list[Kind]:
    """Captions, answers or both: what every run has of a split."""
    kinds = [kind for kind in KINDS if all((kind, split) in found for found in sources.values())]
    if not kinds:
        lacking = (run for _, runs in groups for run in runs if ("captions", split) not in sources[run.run_id])
        run = next(lacking)
        remedy = REMEDY.format(run.run_id, split)
        raise InputError(f"run {run.name} ({run.run_id}) has no captions of {split}; {remedy}")
    return kinds


def _config(run: RunRecord, any_seed: bool) -> dict[str, str]:
    """The configuration as text that is equal where the value is: `1e-4` and 0.0001. An evaluation's is its model's."""
    params = run.params or (find_run(run.tags[TRAINED_BY]).params if _trained_here(run) else {})
    left_out = (*PLACES, "seed") if any_seed else PLACES
    return {key: _plain(value) for key, value in params.items() if not key.startswith(left_out)}


def _trained_here(run: RunRecord) -> bool:
    return run.tags.get(TRAINED_BY, "None") != "None"


def _facts(run: RunRecord) -> dict[str, str]:
    facts = {name: run.tags[tag] for tag, name in FACTS.items() if tag in run.tags}
    facts |= {f"data ({context})": what for context, what in sorted(run.data.items())}
    if commit := run.tags.get("git.commit"):
        facts["source"] = commit[:10] + (" with changes" if run.tags.get("git.dirty") == "true" else "")
    return facts


def _together(runs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What the runs of one side have, each different value once."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(found) for key, found in values.items()}


def _rows(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [(key, tuple(column.get(key, NOTHING) for column in columns)) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _plain(text: str) -> str:
    text = text.strip("'\"")
    try:
        number = float(text)
    except ValueError:
        return {"null": "none", "True": "true", "False": "false"}.get(text, text)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
