"""`vb2 data init`: from a folder of videos and a table to a project whose commands run as printed."""

import json

import pytest
from typer.testing import CliRunner

from videoblip2.cli.data import app
from videoblip2.config import InputError, load_config
from videoblip2.data.annotations import read_annotations
from videoblip2.data.prepare import make_project


def place(folder, count, rows=""):
    """A folder of `count` files that are named like videos, and a table of two captions each."""
    (folder / "my videos").mkdir()
    for n in range(count):
        (folder / "my videos" / f"clip{n}.mp4").touch()
    captions = "".join(f"clip{n}.mp4,a dog {verb}\n" for n in range(count) for verb in ("runs", "sits"))
    (folder / "captions.csv").write_text(f"video,caption\n{captions}{rows}")
    return folder / "my videos", folder / "captions.csv"


def init(*words):
    return CliRunner().invoke(app, ["init", *map(str, words), "--json"], catch_exceptions=False).stdout


def test_a_project_is_annotations_configurations_and_the_next_three_commands(tmp_path):
    videos, table = place(tmp_path, 40, "gone.mp4,a cat\n")
    (videos / "silent.mp4").touch()
    said = init(videos, table, "--out", tmp_path / "mine")
    project = json.loads(said.splitlines()[-1])
    assert sum(project["prepared"]["videos"].values()) == 40 and project["prepared"]["without_features"] == ["gone"]
    assert project["unannotated"] == 1 and "left out, no file in" in said and ": 1 video (gone)" in said
    extract, fetch, ce = project["commands"]
    assert extract.startswith(f"vb2 features extract '{videos}' --out {tmp_path}/mine/features --annotations ")
    assert extract.count(f"--annotations {tmp_path}/mine/data/") == 3
    assert fetch == "vb2 weights fetch blip2-flant5xl" and ce == f"vb2 ce {tmp_path}/mine/ce.yaml"
    script = (tmp_path / "mine" / "commands.sh").read_text()
    assert all(command in script for command in project["commands"]) and "train.start_from=CE_RUN" in script
    train = read_annotations(tmp_path / "mine" / "data" / "train.json")
    for stage in ("ce", "scst"):
        config = load_config(tmp_path / "mine" / f"{stage}.yaml")
        assert config.data.annotations == str(tmp_path / "mine" / "data") and config.train.batch_size <= len(train)
        assert config.train.validate_every * 2 <= config.train.steps and config.optim.warmup_steps < config.train.steps
    assert load_config(tmp_path / "mine" / "scst.yaml").scst.references == "all"


@pytest.mark.parametrize(("count", "steps", "batch"), [(19, 200, 15), (400, 2000, 16), (3000, 7500, 32)])
def test_training_is_sized_to_the_number_of_videos(tmp_path, count, steps, batch):
    ids = [f"v{n}" for n in range(count)]
    (tmp_path / "t.csv").write_text("video_id,caption\n" + "".join(f"{name},a dog\n" for name in ids))
    make_project(tmp_path / "mine", ["videos"], ids, [tmp_path / "t.csv"])
    config = load_config(tmp_path / "mine" / "ce.yaml")
    assert config.train.steps == pytest.approx(steps, rel=0.1) and config.train.batch_size == pytest.approx(
        batch, abs=2
    )
    assert config.data.captions_per_video == 1


def test_splits_and_segments_of_the_table_are_kept(tmp_path):
    videos, _ = place(tmp_path, 3)
    times = {"duration": 9, "timestamps": [[0, 4], [4, 9]], "sentences": ["a dog runs", "it sits"]}
    tables = [tmp_path / "train_a.json", tmp_path / "val_a.json"]
    for table, name in zip(tables, ("clip0", "clip1"), strict=True):
        table.write_text(json.dumps({name: times, f"not_{name}": times}))
    project = json.loads(init(videos, *tables, "--out", tmp_path / "mine").splitlines()[-1])
    assert project["prepared"]["videos"] == {"train": 2, "validate": 2}
    assert read_annotations(tmp_path / "mine" / "data" / "val.json")[0].video_id == "clip1#0-4"


def test_a_second_project_in_the_same_folder_and_one_without_videos_are_refused(tmp_path):
    videos, table = place(tmp_path, 40)
    init(videos, table, "--out", tmp_path / "mine")
    with pytest.raises(InputError, match=r"ce\.yaml: already exists; choose another --out"):
        init(videos, table, "--out", tmp_path / "mine")
    (tmp_path / "other.csv").write_text("video_id,caption\nnot_there,a\n")
    with pytest.raises(
        InputError, match=r"fewer than 1 to train on \(40 videos found, 1 others only in the table\); add"
    ):
        init(videos, tmp_path / "other.csv", "--out", tmp_path / "none")
