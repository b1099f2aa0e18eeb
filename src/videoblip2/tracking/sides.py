"""From the words of a user to the sides of a comparison: which runs, which seeds belong together, what differs."""

from collections.abc import Iterable, Mapping, Sequence

from videoblip2.config import InputError
from videoblip2.tracking.compare import Comparison, Side, compare_sides
from videoblip2.tracking.mlflow.run_records import (
    SPLITS,
    TRAINED_BY,
    RunRecord,
    find_run,
    read_predictions,
    seeds_of,
    splits_of,
)

#: Configuration that says where and what for, not what was computed.
PLACES = ("run.", "train.resume", "train.save_every", "train.probe_videos", "device")
#: Tags and data that tell runs apart beside their configuration.
FACTS = {"stage": "stage", "lineage.parent_name": "started from"}
NOTHING = "—"

Group = tuple[str, list[RunRecord]]


def compare_runs(words: Sequence[str], split: str | None = None, resamples: int = 10_000) -> Comparison:
    """Compare the runs that `words` name; the seeds of one configuration are one side.

    Args:
        words: run ids, their beginnings, or names; a parent that `--seeds` made stands for its runs.
        split: val or test; none = val where every run has its captions, else test.

    Raises InputError for a word that names no run, for fewer than two different ones, and for runs without captions
    of the split, or with other references.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"split {split!r}: not one of {', '.join(SPLITS)}")
    groups = _groups([find_run(word) for word in dict.fromkeys(words)])
    if len({run.run_id for _, runs in groups for run in runs}) < 2 or len(groups) < 2:
        raise InputError(f"{' '.join(words)}: one side only; name two runs or more, see `vb2 runs list`")
    sources = {run.run_id: splits_of(run) for _, runs in groups for run in runs}
    chosen = split or _common_split(sources, groups)
    sides = [_side(name, runs, sources, chosen) for name, runs in groups]
    return compare_sides(chosen, sides, differences(sides), resamples)


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


def _common_split(sources: Mapping[str, Mapping[str, object]], groups: Sequence[Group]) -> str:
    for split in SPLITS:
        if all(split in found for found in sources.values()):
            return split
    has = "; ".join(
        f"{name} has {' and '.join(sources[run.run_id]) or 'none'}" for name, runs in groups for run in runs
    )
    raise InputError(f"no split whose captions every run has ({has}); make them with `vb2 evaluate RUN --split val`")


def _side(
    name: str, runs: Sequence[RunRecord], sources: Mapping[str, Mapping[str, tuple[str, str]]], split: str
) -> Side:
    missing = [run for run in runs if split not in sources[run.run_id]]
    if missing:
        first = missing[0]
        raise InputError(
            f"run {first.name} ({first.run_id}) has no captions of {split}; "
            f"make them with `vb2 evaluate {first.run_id} --split {split}`"
        )
    return Side(name, tuple(runs), tuple(read_predictions(*sources[run.run_id][split]) for run in runs))


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
