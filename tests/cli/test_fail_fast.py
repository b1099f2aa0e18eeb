"""What a command is given is checked before anything heavy is imported."""

import json
import subprocess
import sys

import pytest

#: Command line → a part of its error.
MISTAKES = {
    "ce nowhere.yaml": "nowhere.yaml",
    "ce toy_ce": "runs/demo/data/train.json: no such file or folder; `make demo` makes what the toy experiments need",
    "scst toy_scst": "`make demo` makes",
    "scst toy_scst data.annotations=data data.features=data": "runs/demo/runs/ce/best: no such file or folder",
    "ce toy_ce data.annotations=data data.features=data": "runs/demo/lm/t5: no such file or folder; `make demo`",
    "evaluate runs/none/best": "runs/none/best: no such file or folder; give a checkpoint folder, a run",
    "evaluate data": "data: no checkpoint",
    "evaluate model --split tset": "tset",
    "evaluate model decode.num_beams=0": "error: decode.num_beams=0: input should be greater than or equal to 1",
    "evaluate model train.steps=7": "override 'train.steps=7': has no effect on a trained model; set keys of data",
    "evaluate model run.name=x": "override 'run.name=x': has no effect on a trained model",
    "evaluate model 'device =cpu' train.steps=7": "override 'train.steps=7': has no effect",
    "caption runs/none/best a.mp4": "runs/none/best: no such file or folder",
    "caption model a.mp4 b.mp4": "a.mp4: no such file or folder; give a media file",
    "caption model video1 --features none": "none: no such file or folder",
    "ask model a.mp4 what?": "a.mp4: no such file or folder",
    "ask model data/train.json what? ' '": "question ' ': is empty; ask something",
    "features extract clips --out f": "clips: no such file or folder; give video files",
    "features extract data --out f --output half": "half",
    "features check none": "none: no packed features",
    "features pack none out": "none: no packed features",
    "features import none.npy ids.json --out f": "none.npy",
    "data prepare none.zip --out o": "none.zip",
    "data top5 none.json --out o.json": "none.json",
    "lm none.json --out o": "none.json",
    "weights inspect none.pth": "none.pth: no such file or folder",
    "weights fetch none": "none",
    "experiments show none": "none",
    "evaluate model --out data": "--out data: is a folder; give the name of a file",
    "runs compare a b --html data": "'data' is a directory",
    "runs report a --out data": "'data' is a directory",
    "data top5 data/train.json --out data": "'data' is a directory",
    "data toy data/train.json": "'data/train.json' is a file",
    "demo --out data/train.json": "'data/train.json' is a file",
    "promote runs/none/best": "runs/none/best: no such file or folder",
    "promote model --gate none": "none",
    "promote model decode.num_beams=3": "decode.num_beams=3: the gate compares models as they are served",
    "lineage runs/none/best": "runs/none/best: no such file or folder",
    "reproduce runs/none/best": "runs/none/best: no such file or folder",
    "package --model runs/none/best": "runs/none/best: no such file or folder",
    "serve --model runs/none/best": "runs/none/best: no such file or folder",
    "promote model --gate data/train.json": "data/train.json: holds a list, not keys and values; `vb2 experiments",
    "ce toy_ce run.name=a/../../b": "run.name='a/../../b': a path; give a plain name, and the folder as run.out",
    "tune toy_ce": "toy_ce: not a study, since it has no `search` section; train an experiment with `vb2 ce`",
    "tune none": "none: No such file or directory",
    "runs list": "no MLflow store there",
    "ce toy_ce data.annotations=data data.features=data train.resume=0123abc": "no MLflow store",
    "evaluate no-such-run": "no-such-run: no folder of that name",
    "tune tune_toy_ce": "runs/demo/data/train.json: no such file or folder; `make demo` makes",
}
#: What the last ones may import: they ask MLflow, or read ranges as Optuna does.
ALLOWED = dict(zip(list(MISTAKES)[-2:], (["mlflow"], ["optuna", "mlflow"]), strict=True))
SCRIPT = """
import contextlib, io, json, shlex, sys
from videoblip2.cli import main
for line in json.loads(sys.stdin.read()):
    sys.argv, code, said = ["vb2", *shlex.split(line)], 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = [name for name in ("torch", "transformers", "optuna", "av", "mlflow") if name in sys.modules]
    print(json.dumps([line, code, said.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Command line → (exit code, standard error, what has been imported until then), in a folder with little in it."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("data/train.json", "data/val.json", "data/train_top5_detail.json", "model/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("[]")
    (folder / "model" / "model.safetensors").touch()
    (folder / "model" / "config.yaml").touch()
    command, lines = [sys.executable, "-c", SCRIPT], json.dumps(list(MISTAKES))
    done = subprocess.run(command, cwd=folder, input=lines, capture_output=True, text=True, check=True)
    return {line: rest for line, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_before_anything_heavy_is_imported(answers, line):
    code, said, heavy = answers[line]
    assert MISTAKES[line] in said and code == (2 if said.startswith("Usage") else 1)
    assert len(said.splitlines()) == 1 or code == 2
    assert heavy == ALLOWED.get(line, [])
