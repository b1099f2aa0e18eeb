"""`vb2 ce`, `vb2 scst`, `vb2 evaluate`, `vb2 lm`, `vb2 tune`: the commands that train and test models."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from videoblip2.cli import console
from videoblip2.errors import InputError, counted, masked, validated

if TYPE_CHECKING:
    from videoblip2.config import Config
    from videoblip2.evaluate import SoundEffect
    from videoblip2.model.load_weights import WeightReport
    from videoblip2.tune.lead import Outcome

app = console.Commands()
Overrides = Annotated[console.Words, console.key_values("Keys of the configuration, such as optim.lr=1e-5.")]
Seeds = Annotated[int, Option(min=1, metavar="N", help="Train N seeds, starting at `seed`, under one parent run.")]
Processes = Annotated[int, Option("--nproc", min=1, metavar="N", help="Processes that train together, one per GPU.")]
Restarts = Annotated[int, Option(min=0, metavar="N", help="If a process fails, restart all and resume, up to N times.")]
Launcher = Annotated[
    Literal["local", "ray"],
    Option("--engine", help="Where processes run: local, on this machine; ray, on a Ray cluster."),
]


def _add_stage(stage: str, summary: str, *lines: str) -> None:
    def train(
        config: console.ConfigFile,
        overrides: Overrides = None,
        folder: console.Folder = Path(),
        seeds: Seeds = 1,
        nproc: Processes = 1,
        engine: Launcher = "local",
        max_restarts: Restarts = 0,
    ) -> None:
        words = overrides or []
        if nproc > 1 or max_restarts or engine == "ray":
            from videoblip2.config import load_config
            from videoblip2.training import distributed

            load_config(config, words)
            options = {"--folder": [str(folder)] * (folder != Path()), "--seeds": [str(seeds)] * (seeds > 1)}
            given = [word for option, value in options.items() if value for word in (option, *value)]
            launch = distributed.launch if engine == "local" else distributed.launch_on_ray
            launch([stage, config, *words, *given, *["--json"] * console.AS_JSON.get()], nproc, max_restarts)
        else:
            _train(stage, config, words, folder, seeds)

    train.__doc__ = f"{summary}, as one MLflow run. resume=RUN resumes a stopped run."
    app.report(*lines, name=stage)(train)


_add_stage("ce", "Stage 1: train with cross-entropy", "ce toy_ce", "ce msrvtt_ce optim.lr=1e-4 --seeds 3")
SCST = "Stage 2: train with self-critical sequence training on CIDEr-D"
_add_stage("scst", SCST, "scst msrvtt_scst train.start_from=RUN", "scst msrvtt_scst resume=RUN")


def _train(stage: str, path: str, words: list[str], folder: Path, seeds: int) -> None:
    from videoblip2.captions.metrics import label_of, shown
    from videoblip2.config import load_config

    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):  # torchrun --max-restarts restarts training
        words = ["train.resume=auto", *words]
    usual, config = load_config(path), load_config(path, words)
    console.go_to(folder)
    if console.leads():
        _require_inputs(config)
    try:
        if seeds > 1:
            from videoblip2.training.seeds import run_seeds

            result = run_seeds(stage, config, seeds, console.progress, show_weights, usual)
            table = console.table(*result.table(lambda seed: seed.run_id or ""))
            console.emit(result, f"{result.name}\n{table}")
        else:
            from videoblip2.training.stage import run_stage

            trained = run_stage(stage, config, console.progress, show_weights, usual)
            scores = [
                f"{label_of(name)} {shown(name, value)}" for name, value in trained.metrics.items() if name != "step"
            ]
            head = f"{trained.name}: best at step {trained.best_step}: {'  '.join(scores)}"
            run = trained.run_id or "not tracked"
            text = f"{head}\nrun: {run}\ncheckpoint: {trained.checkpoint}\nmodel: {trained.model}"
            console.emit(trained, text)
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop  # 128 + SIGINT, as the shell expects


def _require_inputs(config: "Config") -> None:
    """Raise InputError for a missing file, folder or run of the configuration, before torch is imported."""
    data, train, model = config.data, config.train, config.model
    names = [data.train, "val.json"] if data.task != "qa" else []
    names += [data.train_qa, "val_qa.json"] if data.task != "caption" else []
    world = "`make demo` makes what the toy experiments need"
    files: list[str | Path] = [*(Path(data.annotations, name) for name in names), data.features]
    console.require(files, f"{world}; `vb2 data prepare` and `vb2 features extract` make those of a data set")
    if train.resume not in (None, "auto") and not Path(train.resume).exists():
        from videoblip2.tracking.mlflow.run_records import find_stopped_run

        find_stopped_run(train.resume)
    elif train.start_from and not train.resume:
        console.require_model(train.start_from)
    elif not train.resume:
        weights = [name for name in (model.language_model, model.qformer.bert) if name.count("/") > 1]  # not the hub's
        weights += [model.qformer.weights] if model.qformer.weights else []
        console.require(weights, f"{world}; `vb2 weights fetch` downloads others")


def show_weights(lines: Mapping[str, str], reports: Mapping[str, "WeightReport"]) -> None:
    """Print the initial weights: a line for each part, a table of tensor groups for each loaded Q-Former."""
    for part, line in lines.items():
        print(f"{part}: {line}")
    for name, report in reports.items():
        columns = ["group", "tensors", "parameters", "what", "from or why"]
        print(console.table(f"{name} Q-Former from {report.file}", columns, report.table()))
    sys.stdout.flush()


@app.report("evaluate models:/videoblip2@champion --split test", "evaluate RUN decode.num_beams=3")
def evaluate(
    model: console.ModelName,
    overrides: Annotated[
        console.Words,
        console.key_values("Keys of the model's own configuration, such as decode.num_beams=3 or data.features=DIR."),
    ] = None,
    split: Annotated[Literal["val", "test"], Option(help="Split of the model's own data.")] = "val",
    out: Annotated[Path | None, Option(help="Predictions file; by default runs/evaluate-….jsonl.")] = None,
    explain: Annotated[
        bool, Option("--explain", help="Also count the words that need the sound, by category.")
    ] = False,
    ablate: Annotated[
        bool, Option("--ablate", help="Also caption with the sound withheld, silenced, or swapped between videos.")
    ] = False,
    folder: console.Folder = Path(),
) -> None:
    """Compute all metrics of a model on a split, per-video scores and a predictions file, as one MLflow run."""
    console.go_to(folder)
    if out and out.is_dir():
        raise InputError(f"--out {out}: is a folder; give the name of a file")
    if console.leads():
        from videoblip2.tracking import model_config

        model_config(model, console.require_model(model), overrides or [])
    from videoblip2.captions.metrics import label_of, shown
    from videoblip2.training.evaluation import evaluate_model

    extras = {"explain": explain, "ablate": ablate}
    asked = [name for name, wanted in extras.items() if wanted]
    result = evaluate_model(model, split, overrides or [], out, console.progress, extras=asked)
    if not console.leads():
        return
    judged = result.evaluation
    rows = [[label_of(name), shown(name, value)] for name, value in judged.corpus.items()]
    rows += [[label_of(name), f"unavailable: {reason}"] for name, reason in judged.unavailable.items()]
    answers = {"answers": str(result.answers)} if result.answers else {}
    files = {"predictions": str(result.predictions), **answers}
    lines = [console.table(f"{model} on {split} ({counted(len(judged.videos), 'video')})", ["metric", "score"], rows)]
    shares = judged.sound_shares
    if explain:
        needed = [[group, f"{share:.1%}"] for group, share in shares.items()]
        lines.append(console.table("Words that need the sound", ["captions", "share"], needed))
    if ablate:
        lines.append(_ablation_table(result.effects))
    lines += [f"{name}: {file}" for name, file in {**files, "run": result.run_id or "not tracked"}.items()]
    scores: dict[str, object] = {"metrics": judged.corpus, "unavailable": judged.unavailable}
    scores |= ({"sound_shares": shares} if explain else {}) | ({"ablation": result.effects} if ablate else {})
    console.emit({"run_id": result.run_id, "split": split, **scores, **files}, "\n".join(lines))


def _ablation_table(effects: "Sequence[SoundEffect]") -> str:
    """One row per group: its CIDEr, and the change with each other sound."""
    from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval

    sounds, rows = list(dict.fromkeys(effect.sound for effect in effects)), dict[str, list[str]]()
    for effect in effects:
        row = rows.setdefault(effect.group, [effect.group, str(effect.videos), shown(PRIMARY, effect.score)])
        row.append(shown_interval(PRIMARY, effect.difference, "+"))
    title = f"{label_of(PRIMARY)} with the videos' own sound, and the change with other sound, 95 % intervals"
    return console.table(title, ["captions", "videos", "own", *sounds], rows.values())


@app.report("lm data/mine/train.json --out models/small steps=500")
def lm(
    annotations: Annotated[Path, Argument(help="train.json: the captions to learn from.")],
    out: Annotated[Path, Option(file_okay=False, help="Folder for t5/ and bert/.")],
    settings: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help="Such as steps=500.")] = None,
    prompt: Annotated[str, Option(help="Words that both vocabularies must contain.")] = "a video of",
) -> None:
    """Train a small T5 on captions alone, for machines and data sets without a pre-trained one."""
    from videoblip2.data.annotations import read_annotations

    videos = read_annotations(annotations)
    from videoblip2.toy.networks import LanguageModelConfig, train_language_model

    sizes = validated(LanguageModelConfig, dict(word.partition("=")[::2] for word in settings or []), "setting")
    t5, bert = train_language_model(videos, [prompt], out, sizes, console.progress)
    console.emit({"t5": str(t5), "bert": str(bert)}, f"language model: {t5}\nword pieces: {bert}")


@app.report("tune tune_toy_ce", "tune tune_toy_ce n_trials=40", "tune tune_toy_ce --worker")
def tune(
    config: Annotated[str, Argument(metavar="CONFIG", help="Study: a YAML file, or a name such as tune_toy_ce.")],
    overrides: Annotated[console.Words, console.key_values("Keys of the study (n_trials=40) or experiment.")] = None,
    worker: Annotated[bool, Option("--worker", help="Run trials of a study that another process leads.")] = False,
    storage: Annotated[str | None, Option(help="Journal file, sqlite:///…, postgresql://… or grpc://….")] = None,
    serve: Annotated[str | None, Option(metavar="HOST:PORT", help="Run no trials: serve the database there.")] = None,
    nproc: Processes = 1,
    trial: Annotated[int | None, Option(hidden=True)] = None,  # of a process that --nproc has started
) -> None:
    """Search the ranges of CONFIG for the best validation score. Run it again to resume, up to n_trials."""
    pairs = [*(overrides or []), *([f"storage={storage}"] if storage else [])]
    if trial is not None:
        from videoblip2.tune.lead import take_part

        return take_part(config, pairs, trial, console.progress, console.say)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        ways = "--nproc N trains each trial on N processes, --worker adds a process that runs other trials"
        raise InputError(f"vb2 tune: started by torchrun; start it alone: {ways}")
    from videoblip2.overrides import read_yaml

    if "search" not in read_yaml(config):
        remedy = "train an experiment with `vb2 ce` or `vb2 scst`; `vb2 experiments show tune_toy_ce` shows a study"
        raise InputError(f"{config}: not a study, since it has no `search` section; {remedy}")
    from videoblip2.tune.plan import load_plan

    plan = load_plan(config, pairs)
    if serve is not None:
        from videoblip2.tune import study as stores

        place = stores.address(plan)
        console.say(f"serving {masked(place)} to grpc://{serve}; press Ctrl-C to stop")
        return stores.serve(place, serve)
    if plan.tuning.stage != "decode":
        _require_inputs(plan.base)
    elif nproc > 1:
        raise InputError(f"--nproc {nproc}: a decoding trial is one process; add processes with --worker")
    from videoblip2.tune import lead

    if worker:
        made = lead.join(config, pairs, console.progress, console.say, nproc)
        return console.emit({"made": made}, f"{counted(made, 'trial')} run; no trials are left")
    outcome = lead.tune(config, pairs, console.progress, console.say, nproc)
    console.emit(_study_record(outcome), _study_text(outcome))
    if outcome.best is None:
        raise InputError(f"study {outcome.study}: no trial is complete; run the command again to resume")


def _study_record(outcome: "Outcome") -> dict[str, object]:
    best, verdict = outcome.best, outcome.verdict
    number = verdict.best if verdict else best and best.number
    judged = verdict and {"better": verdict.better, "interval": [verdict.low, verdict.high], **console.plain(verdict)}
    shown = {name: getattr(outcome, name) for name in ("study", "run_id", "best_file", "plots", "rows")}
    top = best and {"trial": number, outcome.metric: best.values[0], "params": best.params}
    return {**shown, "trials": outcome.states, "best": top, "verdict": judged}


def _study_text(outcome: "Outcome") -> str:
    ended = ", ".join(f"{number} {state}" for state, number in outcome.states.items())
    lines = [f"study {outcome.study}: {ended}", f"run: {outcome.run_id or 'not tracked'}"]
    if outcome.best is None:
        return "\n".join([*lines, "no trial is complete, so there is no best.yaml"])
    from videoblip2.captions.metrics import label_of
    from videoblip2.tune.report import shown, shown_score

    score, params = shown_score(outcome.best), shown(outcome.best.params)
    alone = "the default trial is not complete, so there is nothing to compare with"
    verdict = outcome.verdict.text() if outcome.verdict else alone
    lines += [f"best: validation {label_of(outcome.metric)} {score}   {params}", verdict]
    plots = ", ".join(map(str, outcome.plots))
    lines += [f"best.yaml: {outcome.best_file}", *console.listed((plots, f"plots: {plots}"))]
    return "\n".join([*lines, "next:", *(f"  {command}" for command in outcome.commands)])
