"""Every published form of captions, written as the data sets write it, and odd ones."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from videoblip2.config import InputError
from videoblip2.data.annotations import read_annotations
from videoblip2.data.prepare import prepare_captions
from videoblip2.files import segment_id, segment_of


def as_parquet(rows: list[dict]) -> bytes:
    parquet.write_table(pyarrow.Table.from_pylist(rows), file := io.BytesIO())
    return file.getvalue()


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


HUB = {"category": 9, "url": "https://www.youtube.com/watch?v=9lZi22qLlEo", "start time": 137.72, "end time": 149.44}
COCO_INFO = {"info": {"description": "COCO 2014 Dataset", "year": 2014}, "licenses": [{"id": 1, "name": "BY-NC-SA"}]}
KARPATHY = {"filepath": "val2014", "imgid": 0, "sentids": [770337], "cocoid": 391895}
YOUCOOK = {"duration": 241.62, "recipe_type": "113", "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg"}
DESCRIBED = {"url": "https://youtu.be/x", "clip_span": ["00:00:10", "00:00:20"], "subtitle": "so", "audio_cap": ["hum"]}
MANY = "video0,a man runs\nvideo0,someone runs\n"

#: Name of the file → its content and what is expected in train.json, val.json or test.json.
FORMS = {
    # MSR-VTT's copies on the hub, and the lists of the 9k and 1k-A protocols
    "msrvtt_train_9k.json": (
        [{"video": "video0.mp4", "caption": ["a car", "a red car"], "id": 0, "video_id": "video0"} | HUB],
        {"video0": ("a car", "a red car")},
    ),
    "train-00000-of-00001-60e50ff5fbbd1bb5.parquet": (
        as_parquet([{"video_id": "video0", "caption": text, "sen_id": 7, "split": "train"} | HUB for text in "ab"]),
        {"video0": ("a", "b")},
    ),
    "MSRVTT_JSFUSION_test.csv": (
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something to system\n",
        {"video9770": ("a person is connecting something to system",)},
    ),
    # VATEX, ActivityNet Captions, YouCook2
    "vatex_training_v1.0.json": (
        [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["A person climbs.", "A climber."], "chCap": ["\u4e00"]}],
        {"Ptf_2VRj-V0_000122_000132": ("A person climbs.", "A climber.")},
    ),
    "val_1.json": (
        {"v_uqi": {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32]], "sentences": ["A lift.", " It."]}},
        {"v_uqi#0.28-55.15": ("A lift.",), "v_uqi#13.79-54.32": (" It.",)},
    ),
    "youcookii_annotations_trainval.json": (
        {
            "database": {
                "GLd3aX16zBg": YOUCOOK
                | {
                    "subset": "training",
                    "annotations": [
                        {"segment": [90, 102], "id": 0, "sentence": "spread margarine"},
                        {"segment": [114, 127], "id": 1, "sentence": "place a slice of cheese"},
                    ],
                }
            }
        },
        {"GLd3aX16zBg#90-102": ("spread margarine",), "GLd3aX16zBg#114-127": ("place a slice of cheese",)},
    ),
    # AudioCaps, Clotho
    "train.csv": (
        "audiocap_id,youtube_id,start_time,caption\n91139,r1nicOVtvkQ,130,A woman talks\n58146,r1nicOVtvkQ,130,Talk\n",
        {"r1nicOVtvkQ": ("A woman talks", "Talk")},
    ),
    "clotho_captions_development.csv": (
        "file_name,caption_1,caption_2,caption_3\nDistorted AM Radio noise.wav,A muddled noise,A radio,Static\n",
        {"Distorted AM Radio noise": ("A muddled noise", "A radio", "Static")},
    ),
    # COCO, and Karpathy's split of it
    "captions_val2014.json": (
        COCO_INFO
        | {
            "images": [{"license": 1, "file_name": "COCO_val2014_000000184613.jpg", "id": 184613, "height": 336}],
            "annotations": [
                {"image_id": 184613, "id": 474921, "caption": "A child holding an umbrella."},
                {"image_id": 184613, "id": 479322, "caption": "A boy."},
            ],
        },
        {"COCO_val2014_000000184613": ("A child holding an umbrella.", "A boy.")},
    ),
    "dataset_coco.json": (
        {
            "images": [
                KARPATHY
                | {"filename": "COCO_val2014_000000391895.jpg", "split": "restval", "sentences": [{"raw": "A man."}]}
            ],
            "dataset": "coco",
        },
        {"COCO_val2014_000000391895": ("A man.",)},
    ),
    # VALOR's descriptions and mapping, VAST's clips
    "desc_train.json": (
        [{"video_id": "x-2Abohj8VY_30.000_40.000", "desc": "A dog."}],
        {"x-2Abohj8VY_30.000_40.000": ("A dog.",)},
    ),
    "train_txt_mapper.json": ({"video0": ["a man runs", "someone runs"]}, {"video0": ("a man runs", "someone runs")}),
    "annotations_train.json": (
        [{"clip_id": "zIVFsxlqq2k.12", "vast_cap": ["A man."], "vision_cap": ["He."]} | DESCRIBED],
        {"zIVFsxlqq2k.12": ("A man.",)},
    ),
    "train_gt.json": ({"annotations": [{"video_id": "v", "caption": "a"}]}, {"v": ("a",)}),
    # Any name, packed or not
    "train.captions": (lines({"video": "a/v.mp4", "text": "a"}, {"video": "a/v.mp4", "text": "b"}), {"v": ("a", "b")}),
    "train.ndjson": (lines({"video_id": "v", "captions": ["a", "b"]}), {"v": ("a", "b")}),
    "train": ("\ufeffvideo_id,caption\n" + MANY, {"video0": ("a man runs", "someone runs")}),
    "train.tsv.gz": (gzip.compress(b"video_id\tcaption\nv\ta\n"), {"v": ("a",)}),
    "train.json.gz": (gzip.compress(b'{"v": "a"}'), {"v": ("a",)}),
}


def place(folder, name, content):
    data = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    (folder / name).write_bytes(data)
    return folder / name


def prepared(folder):
    files = [folder / f"{split}.json" for split in ("train", "val", "test")]
    return {v.video_id: v.captions for file in files if file.is_file() for v in read_annotations(file)}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_as_its_data_set_writes_it(tmp_path, name):
    content, expected = FORMS[name]
    prepare_captions([place(tmp_path, name, content)], tmp_path / "out")
    assert prepared(tmp_path / "out") == expected


ODD = {
    "train.csv": (b"", "train.csv: contains no rows"),
    "train.jsonl": (b"\xef\xbb\xbf\n", "train.jsonl: contains no rows"),
    "train.json": (b"", "train.json: not JSON"),
    "train.json.gz": (gzip.compress(b"[1, 2]")[:-9], "train.json.gz: not a readable gzip file"),
    "train.parquet": (b"PAR1 cut off", "train.parquet: not a readable parquet file"),
    "train_mixed.json": (["video0", {"video_id": "v", "caption": "a"}], 'entry 1: "video0" is not an object'),
    "train_val_1.json": (
        {"v": {"duration": 9, "timestamps": [[0, 5]], "sentences": ["a", "b"]}},
        r"the times of v are \[\[0, 5\]\] \(.*\); give a start and an end per caption",
    ),
    "train_coco.json": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]},
        "no captions for 1; add one each or remove the images",
    ),
    "train_twice.json": ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, "listed more than once: 1"),
    "none.json": ({"v": {"duration": 9}}, "entry 1: no caption or captions or .* among id, duration"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_named_in_one_line(tmp_path, name):
    content, message = ODD[name]
    with pytest.raises(InputError, match=message) as caught:
        prepare_captions([place(tmp_path, name, content)], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_files_name_wins_over_the_split_inside_and_the_conflict_is_reported(tmp_path):
    rows = "video_id,caption,split\nv1,a,train\nv2,b,val\n"
    report = prepare_captions([place(tmp_path, "train.csv", rows)], tmp_path / "out")
    assert report.videos == {"train": 2} and report.moved == 1
    assert report.examples["moved"].startswith("v2: validate in ") and report.examples["moved"].endswith("train.csv")


def test_the_1ka_lists_of_msrvtt_in_json_decide(tmp_path):
    videos = [{"video_id": f"video{n}", "category": 0, "split": "train"} for n in range(3)]
    texts = [{"sen_id": n, "video_id": f"video{n}", "caption": f"caption {n}"} for n in range(3)]
    data = place(tmp_path, "MSRVTT_data.json", {"videos": videos, "sentences": texts})
    kept = place(tmp_path, "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo1\n")
    tested = place(
        tmp_path, "msrvtt_test_1k.json", [{"video_id": "video2", "video": "video2.mp4", "caption": "caption 2"}]
    )
    report = prepare_captions([data, kept, tested], tmp_path / "out")
    assert report.videos == {"train": 2, "test": 1} and report.moved == 1


def test_a_segment_in_both_of_activitynets_files_has_the_captions_of_both(tmp_path):
    files = [{"v_a": {"timestamps": [[0, 9]], "sentences": [text]}} for text in ("a man runs", "someone runs")]
    paths = [place(tmp_path, f"val_{n}.json", file) for n, file in enumerate(files, 1)]
    assert prepare_captions(paths, tmp_path / "out").videos == {"validate": 1}
    assert prepared(tmp_path / "out") == {"v_a#0-9": ("a man runs", "someone runs")}


def test_activitynets_zip_has_lists_of_videos_that_decide_over_its_segments(tmp_path):
    clip = {"duration": 9.0, "timestamps": [[0, 9]], "sentences": ["a man runs"]}
    with zipfile.ZipFile(tmp_path / "captions.zip", "w") as archive:
        for name, content in {
            "train.json": {"v_a": clip},
            "val_1.json": {"v_b": clip},
            "train_ids.json": ["v_a"],
            "val_ids.json": ["v_b"],
            "test_ids.json": ["v_c"],
        }.items():
            archive.writestr(name, json.dumps(content))
    report = prepare_captions([tmp_path / "captions.zip"], tmp_path / "out")
    assert report.videos == {"train": 1, "validate": 1} and report.unassigned == report.moved == 0
    assert report.listed_only == ["v_c"]


def test_youcook2s_tar_is_unpacked(tmp_path):
    content = json.dumps(FORMS["youcookii_annotations_trainval.json"][0]).encode()
    with tarfile.open(tmp_path / "youcookii_annotations_trainval.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("youcookii_annotations_trainval.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    assert prepare_captions([tmp_path / "youcookii_annotations_trainval.tar.gz"], tmp_path / "out").videos == {
        "train": 2
    }


def test_segments_are_named_in_seconds_and_read_back():
    assert segment_id("v_a", 0.83, "19.86") == "v_a#0.83-19.86" and segment_id("v", 90, 102.5004) == "v#90-102.5"
    assert segment_id("v", 7, -1) == "v#0-7"  # ActivityNet has some that end before they start
    assert segment_of("v_a#0.83-19.86") == ("v_a", (0.83, 19.86)) and segment_of("v#1") == ("v#1", None)
