"""`vb2 demo`: the whole path on generated videos, and its table of results."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from videoblip2.cli.console import Commands, emit, interruptible, progress, say, table
from videoblip2.errors import counted, masked

if TYPE_CHECKING:
    from videoblip2.toy.demo import Demo

app = Commands()
LABELS = {
    "ce": "CE (video + audio)",
    "scst": "CE, then SCST",
    "video_only": "CE, video only",
    "audio_only": "CE, audio only",
}


@app.report("demo", "demo --quick --out /tmp/demo")
def demo(
    out: Annotated[Path, Option(file_okay=False, help="Folder for everything the demo makes.")] = Path("runs/demo"),
    quick: Annotated[bool, Option("--quick", help="A half-minute run, just to check that everything works.")] = False,
) -> None:
    """Run the whole path on generated videos, offline: data, features, training, promotion, serving."""
    from videoblip2.captions.metrics import PRIMARY
    from videoblip2.toy.demo import FULL, QUICK, run_demo

    store = os.environ.get("MLFLOW_TRACKING_URI", "")  # the shell's: MLflow sets it in this process
    with interruptible(f"{out}: stopped; finished parts are kept"):
        made = run_demo(out, QUICK if quick else FULL, progress, say)
    scst, ce = made.tests["scst"].evaluation, made.tests["ce"].evaluation
    shown = [
        f"{made.videos / video_id}.mp4\n"
        f"  reference  {scst.references[video_id][0]}\n"
        f"  CE         {ce.captions[video_id]}\n"
        f"  SCST       {scst.captions[video_id]}"
        for video_id in made.example_videos()
    ]
    scores = {name: test.evaluation.corpus[PRIMARY] for name, test in made.tests.items()} | {"trivial": made.trivial}
    runs = {name: stage.run_id for name, stage in made.stages.items()}
    record = {name: {"cider": cider, "run_id": runs.get(name)} for name, cider in scores.items()}
    seconds = made.seconds
    served = f"served by bentoml, {made.served}"
    text = [_results(made), *shown, served, next_commands(made, store), f"{seconds:.0f} seconds"]
    emit({**record, "seconds": round(seconds, 1)}, "\n\n".join(text))


def next_commands(made: "Demo", store: str) -> str:
    """Commands that work exactly as printed: in this folder, with or without an activated environment."""
    from videoblip2.tracking.mlflow.run_records import runs_page

    ce, scst = (str(made.stages[name].run_id) for name in ("ce", "scst"))
    programs = "" if shutil.which("vb2") else f"{shlex.quote(str(Path(sys.executable).parent))}/"
    clip = str(made.videos / f"{made.example_videos()[0]}.mp4")
    paths = {"data.annotations": made.data, "data.features": made.out / "features", "run.out": made.out / "runs"}
    moved = [f"{key}={path}" for key, path in paths.items()] if made.out != Path("runs/demo") else []
    server = masked(store) if store.startswith("http") else "http://127.0.0.1:5000"
    own_store = store and not store.startswith("http")
    options = ' --backend-store-uri "$MLFLOW_TRACKING_URI"' if own_store else ""  # the address may hold a password
    lines = {
        shlex.join(["vb2", "caption", "models:/videoblip2@champion", clip]): "",
        "vb2 serve": "its page: http://127.0.0.1:3000",
        shlex.join(["vb2", "runs", "compare", ce[:8], scst[:8], "--html", "compare.html"]): "what SCST changed",
        shlex.join(["vb2", "scst", "toy_scst", "scst.baseline=greedy", f"train.start_from={ce}", *moved]): "",
        f"mlflow ui{options}": f"the runs: {server}{runs_page(ce)}",
    }
    return "\n".join(["Next:", *(f"  {programs}{line}{f'  # {what}' if what else ''}" for line, what in lines.items())])


def _results(made: "Demo") -> str:
    from videoblip2.captions.metrics import PRIMARY, label_of, shown, shown_interval, summary_metrics

    names = summary_metrics(made.tests["ce"].evaluation.corpus)
    gains = {name: {score.metric.name: score for score in found.scores} for name, found in made.gains.items()}
    rows = []
    for name, label in LABELS.items():
        scores, main = made.tests[name].evaluation.corpus, gains["scst" if name == "ce" else name][PRIMARY]
        value = shown_interval(PRIMARY, main.values[name != "ce"])
        gain = "" if name == "ce" else shown_interval(PRIMARY, main.differences[0], "+")
        others = [shown(key, scores[key]) if key in scores else "" for key in names if key != PRIMARY]
        rows.append([label, value, gain, *others, str(made.stages[name].run_id)[:8]])
    rows.append(["most typical training caption", shown(PRIMARY, made.trivial), *[""] * (len(names) + 1)])
    videos = counted(len(made.tests["ce"].evaluation.videos), "video")
    title = f"Toy world, test split ({videos}, none seen in training)"
    heads = [label_of(key) for key in names if key != PRIMARY]
    changes = []
    for key in filter(gains["scst"].get, names):
        difference = gains["scst"][key].differences[0]
        clear = difference.low > 0 or difference.high < 0
        changes.append(f"{label_of(key)} {shown_interval(key, difference, '+')}{'' if clear else ' (not significant)'}")
    text = table(title, ["model", label_of(PRIMARY), "minus CE", *heads, "run id"], rows)
    return f"{text}\nBrackets: 95 % intervals over the test videos. SCST minus CE: {', '.join(changes)}."
