"""`vb2 caption`: captions, subtitles or answers for one video or for thousands of them; `vb2 ask`: answers for one."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from videoblip2.cli import console
from videoblip2.errors import InputError, counted, refused, warn
from videoblip2.files import printable

if TYPE_CHECKING:
    from videoblip2.captioner import Captioner
    from videoblip2.jobs.forms import Row
    from videoblip2.jobs.rows import RowFile

app = console.Commands()
REMEDY = "give a media file, or --features with a feature store and video ids"
SOURCES = "Files, folders, glob patterns, @list.txt, or - for standard input; video ids with --features."
Clip = Annotated[str | None, Option(help="CLIP encoder of the model's features, if it has moved: folder or hub name.")]
Clap = Annotated[str | None, Option(help="CLAP encoder of the model's features, if it has moved: folder or hub name.")]


@app.report(
    "caption models:/videoblip2@champion holiday.mp4",
    "caption models:/videoblip2@champion videos/ --out captions.jsonl",
    "caption RUN film.mp4 --segments scenes --out film.srt",
    "caption RUN videos/ --questions questions.txt --out answers.csv",
    "caption RUN video560 --features runs/demo/features",
    "caption --merge captions.jsonl",
)
def caption(
    model: console.ModelName,
    sources: Annotated[list[str] | None, Argument(metavar="SOURCE", help=SOURCES, callback=console.expanded)] = None,
    out: Annotated[Path | None, Option(help="Resumable output: .jsonl .json .csv .tsv .parquet .srt .vtt.")] = None,
    questions: Annotated[list[str] | None, Option(help="A question to ask, or a file of them; repeatable.")] = None,
    samples: Annotated[int, Option(min=1, help="Captions to draw for each video.")] = 1,
    temperature: Annotated[float | None, Option(help="Of samples; default: 1, or the model's for consensus.")] = None,
    consensus: Annotated[
        int | None, Option(min=0, max=1000, help="Keep the most typical of N samples and the likeliest caption.")
    ] = None,
    num_beams: console.Beams = None,
    max_new_tokens: Annotated[int | None, Option(min=1, max=1000, help="Longest text; default: the model's.")] = None,
    length_penalty: Annotated[float | None, Option(help="For beams; default: the model's.")] = None,
    prompt: Annotated[str | None, Option(help="Prompt to use instead of the model's own.")] = None,
    segments: Annotated[str | None, Option(help="One caption per segment: its length in seconds, or scenes.")] = None,
    explain: Annotated[bool, Option("--explain", help="Also show which words depend on sound or picture.")] = False,
    features: console.FeatureFolder = None,
    keep_features: Annotated[Path | None, Option(help="Feature store to keep the features in.")] = None,
    shard: Annotated[str | None, Option(metavar="I/N", help="Process part I of N; adds .I-of-N to --out.")] = None,
    merge: Annotated[bool, Option("--merge", help="Merge files SOURCE (default: all shards) into file MODEL.")] = False,
    engine: console.Engine = "local",
    actors: Annotated[int, Option(min=1, help="Number of copies of the model, with --engine ray.")] = 1,
    batch_size: Annotated[int, Option(min=1, help="Captions decoded together.")] = 16,
    workers: Annotated[int | None, Option(min=1, help="Decoding threads; default: one per core, at most 8.")] = None,
    clip: Clip = None,
    clap: Clap = None,
) -> None:
    """Caption videos, or answer questions about them. Resumable with --out; a bad file does not stop the rest."""
    if merge:
        _merge(Path(model), sources or [])
        return
    if features and keep_features:
        raise InputError(f"--keep-features {keep_features}: the features are in --features {features}; leave one out")
    folder = console.require_model(model)
    plain = [source for source in sources or [] if not set(source) & set("*?[") and source[:1] not in ("@", "-")]
    if features or (plain == sources and not any(Path(source).exists() for source in plain)):
        console.require([features] if features else plain, REMEDY)
    from videoblip2.features.sources import find_sources, parse_shard
    from videoblip2.jobs.caption import CaptionOptions, JobPlan
    from videoblip2.jobs.forms import form_of
    from videoblip2.jobs.rows import RowFile, shard_file
    from videoblip2.tracking import model_config

    part = parse_shard(shard)
    out = shard_file(out, part) if out is not None else None
    if out is not None:
        form_of(out)
    found = find_sources(sources or [], features is not None, part)
    if not found and (part is None or out is None):  # a shard without videos has an empty file
        raise InputError(f"{' '.join(sources or ['SOURCE'])}: no video found{' for this shard' if part else ''}")
    if features is None and part is None and all(source.error for source in found):
        raise InputError(found[0].error)
    given = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "length_penalty": length_penalty}
    given |= {"consensus": consensus, "temperature": temperature}
    decoding = model_config(model, folder, only="decode").decode.decoding.but(samples > 1, **given)
    if temperature is not None and not (decoding.sampled or decoding.consensus):
        raise InputError(f"--temperature {temperature}: nothing is sampled; add --samples or --consensus")
    options = CaptionOptions(
        decoding,
        prompt,
        tuple(_questions(questions or [])),
        samples,
        float(segments) if segments and segments.replace(".", "", 1).isdecimal() else segments,
        batch_size,
        workers,
        explain,
    )
    job = JobPlan(model, options, {"clip": clip, "clap": clap}, features, keep_features, part)
    if engine == "ray":
        from videoblip2.jobs.ray import caption_on_ray

        run: Callable[..., Generator[list[Row], None, None]] = partial(caption_on_ray, job, actors)
    else:
        local = job.open()
        _warn_of(local.captioner)
        run = local.run
    with ExitStack() as stack:
        file = stack.enter_context(RowFile(out, job.version, str(options))) if out is not None else None
        stack.enter_context(console.interruptible(f"{out or 'stopped'}: rows written so far are kept"))
        batch = stack.enter_context(closing(run(found, file.done if file else {})))  # ends its threads
        rows, bad = _consume(batch, len(found), file, console.AS_JSON.get())
        if file is not None:
            file.finish([printable(source.path) for source in found])
    failed = len(bad)
    kept = f"{out}: {len(found) - failed} done, {failed} failed" if out is not None else ""
    record = {"model_version": job.version, "out": str(out) if out else None, "failed": failed}
    console.emit(record, kept, captions=[{"video": row.path, **row.shown()} for row in rows])
    console.exit_if_failed(failed, len(found) - failed)


@app.report("ask runs/demo/runs/qa/best ball.mp4 'what color is the ball?' 'what is heard?'")
def ask(
    model: console.ModelName,
    video: Annotated[str, Argument(metavar="VIDEO", help="Media file, or video id with --features.")],
    questions: Annotated[list[str], Argument(metavar="QUESTION", help="Such as 'what color is the ball?'.")],
    features: console.FeatureFolder = None,
    num_beams: console.Beams = None,
    clip: Clip = None,
    clap: Clap = None,
) -> None:
    """Answer questions about one video, with a model trained on questions (data.task=qa or mixed)."""
    folder = console.require_model(model)
    console.require([features or video], REMEDY)
    from videoblip2.features.sources import VideoSource
    from videoblip2.jobs.caption import CaptionOptions, JobPlan
    from videoblip2.tracking import model_config

    decoding = model_config(model, folder, only="decode").decode.decoding.but(num_beams=num_beams)
    options = CaptionOptions(decoding, questions=tuple(questions))
    job = JobPlan(model, options, {"clip": clip, "clap": clap}, features).open()
    _warn_of(job.captioner)
    (rows,) = job.run([VideoSource(video)], {})
    if rows[0].error is not None:
        raise InputError(rows[0].error)
    answers = [{"question": row.question, "answer": row.caption, "score": row.score} for row in rows]
    lines = [f"{row.question}  {row.caption or '(no answer)'}" for row in rows]
    facts = {"model_version": job.captioner.version, "warning": job.captioner.provenance.warning}
    console.emit({"video": video, "answers": answers}, "\n".join(lines), **facts)


def _warn_of(captioner: "Captioner") -> None:
    if warning := captioner.provenance.warning:
        warn(f"{captioner.model_name} was {warning}")


def _consume(
    batches: "Iterable[list[Row]]", total: int, file: "RowFile | None", keep: bool
) -> "tuple[list[Row], set[str]]":
    """Write or print rows as they arrive; return this run's rows if `keep`, and the paths that failed."""
    every: list[Row] = []
    failed: set[str] = set()
    for rows in console.progress(batches, total, "captions") if file is not None else batches:
        every += rows if keep else []
        failed |= {row.path for row in rows if row.error is not None}
        if file is not None:
            file.add(rows)
        for row in rows:
            if file is None or row.error is not None:
                print(row, file=sys.stdout if file is None else sys.stderr, flush=True)
    return every, failed


def _questions(words: Iterable[str]) -> Iterator[str]:
    """Each word is a question, or a file with one per line."""
    for word in words:
        path = Path(word).expanduser()
        remedy = "give a UTF-8 file with one question per line"
        with refused(f"--questions {word}: cannot be read", remedy, OSError, UnicodeDecodeError):
            lines = path.read_text(encoding="utf-8-sig").split("\n") if os.path.isfile(path) else [word]
        yield from (line.strip() for line in lines if line.strip() or len(lines) == 1)


def _merge(out: Path, parts: list[str]) -> None:
    from videoblip2.jobs.rows import merge

    rows = merge(out, [Path(part) for part in parts])
    failed = sum(row.error is not None for row in rows)
    text = f"{out}: {counted(len(rows), 'row')}, {failed} failed"
    console.emit({"out": str(out), "rows": len(rows), "failed": failed}, text)
    console.exit_if_failed(failed, len(rows) - failed)
