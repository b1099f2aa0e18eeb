"""Captions in every published form in, our lists out; nothing lost, and each mistake named."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.data.annotations import compare_with_features, read_annotations
from videoblip2.data.prepare import described, prepare_captions
from videoblip2.features.store import FeatureStore, write_features
from videoblip2.provenance import TOY

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt"


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def official(splits: dict[str, str]) -> dict:
    """MSR-VTT's layout, with the sentences of each video in reverse order of their numbers."""
    videos = [{"video_id": v, "category": 3, "split": s, "start time": 0, "end time": 1} for v, s in splits.items()]
    sentences = [{"sen_id": n, "video_id": v, "caption": f"{v} caption {n}"} for v in splits for n in (12, 7, 3)]
    return {"info": {}, "videos": videos, "sentences": sentences}


def test_prepare_sorts_captions_and_splits_videos(tmp_path):
    first = save(tmp_path / "a.json", official({"video5": "train", "video1": "train", "video2": "validate"}))
    second = tmp_path / "b.zip"
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("__MACOSX/b.json", "junk")
        archive.writestr("b.json", json.dumps(official({"video9": "test"})))
    report = prepare_captions([first, second], tmp_path / "out")
    assert report.videos == {"train": 2, "validate": 1, "test": 1} and report.captions["train"] == 6
    train = read_annotations(tmp_path / "out" / "train.json")
    assert [video.video_id for video in train] == ["video5", "video1"]
    assert train[0].captions == ("video5 caption 3", "video5 caption 7", "video5 caption 12") and train[0].category == 3
    assert read_annotations(tmp_path / "out" / "test.json")[0].video_id == "video9"


def test_only_the_first_captions_of_each_video(tmp_path):
    report = prepare_captions([save(tmp_path / "a.json", official({"video1": "test"}))], tmp_path / "out", first=2)
    assert report.captions == {"test": 2}
    assert read_annotations(tmp_path / "out" / "test.json")[0].captions == ("video1 caption 3", "video1 caption 7")


def test_what_the_documents_say_of_their_data_set_is_kept_until_others_replace_them(tmp_path):
    toy = official({"video1": "train"}) | {"info": {"description": TOY}}
    prepare_captions([save(tmp_path / "toy.json", toy)], tmp_path / "out")
    assert described(tmp_path / "out") == (TOY,)
    prepare_captions([save(tmp_path / "mine.csv", "video_id,caption\na,a dog")], tmp_path / "out", "train")
    assert described(tmp_path / "out") == ()


def test_a_split_that_no_file_holds_is_not_written(tmp_path):
    prepare_captions([save(tmp_path / "a.json", official({"video1": "test"}))], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.json"]


def test_flaws_are_counted_and_only_empty_captions_are_left_out(tmp_path):
    content = official({"video1": "train"})
    for sentence, caption in zip(content["sentences"], ["twice", "twice", " "], strict=True):
        sentence["caption"] = caption
    content["sentences"].append({"sen_id": 99, "video_id": "video1", "caption": "a\x00b"})
    report = prepare_captions([save(tmp_path / "a.json", content)], tmp_path / "out")
    assert (report.duplicate_captions, report.empty_captions, report.control_character_captions) == (1, 1, 1)
    assert report.examples["duplicate"] == "video1: 'twice'"
    assert read_annotations(tmp_path / "out" / "train.json")[0].captions == ("twice", "twice", "a\x00b")


def broken(change) -> dict:
    content = official({"video1": "train", "video2": "test"})
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "official.json entry 1: 1 is not an object"),
        ({}, "official.json: contains no rows"),
        ("3", "official.json: neither MSR-VTT's layout"),
        (broken(lambda c: c["videos"][0].pop("split")), "split"),
        (broken(lambda c: c["videos"][0].update(split="practice")), "video1 has the split 'practice'"),
        (broken(lambda c: c["videos"].pop()), "video2, which is not in"),
        (broken(lambda c: c.update(sentences=c["sentences"][:3])), "no captions for video2"),
        (broken(lambda c: c["videos"].append(c["videos"][0])), "listed more than once: video1"),
        (broken(lambda c: c["sentences"][0].update(caption=None)), "official.json sentences entry 1: no caption among"),
        (
            broken(lambda c: c["sentences"][1].update(sen_id="x")),
            "sentences entry 2: the sen_id is 'x' .*; give its number",
        ),
        (broken(lambda c: c["videos"][1].update(video_id=None)), "official.json videos entry 2: no video_id among"),
        (broken(lambda c: c["videos"].append("video3")), 'videos entry 3: "video3" is not an object'),
    ],
)
def test_a_bad_official_file_is_named_and_nothing_written(tmp_path, content, message):
    path = save(tmp_path / "official.json", content)
    with pytest.raises(InputError, match=message) as caught:
        prepare_captions([path], tmp_path / "out")
    assert "official.json" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_annotations_are_named(tmp_path):
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(InputError, match=r"text\.json: not JSON"):
        prepare_captions([tmp_path / "text.json"], tmp_path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_annotations(tmp_path / "none.json")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"empty\.zip: contains no annotations .*only readme\.txt"):
        prepare_captions([tmp_path / "empty.zip"], tmp_path)
    path = save(tmp_path / "a.json", official({"video1": "train"}))
    with pytest.raises(InputError, match="listed more than once: video1"):
        prepare_captions([path, path], tmp_path / "out")


def videos_in(path: Path) -> dict[str, tuple[str, ...]]:
    return {video.video_id: video.captions for video in read_annotations(path)}


def test_msrvtt_2017s_test_set_has_no_captions_and_is_listed(tmp_path):
    train = official({"video1": "train"})
    for sentence in train["sentences"]:
        del sentence["sen_id"]
    test = {"info": {}, "videos": [{"video_id": "video10000", "category": 2, "split": "test"}], "sentences": []}
    paths = [save(tmp_path / "a_2017.json", train), save(tmp_path / "b_2017.json", test)]
    report = prepare_captions(paths, tmp_path / "out")
    assert (report.videos, report.uncaptioned) == ({"train": 1}, {"test": 1})
    listed = json.loads((tmp_path / "out" / "uncaptioned.json").read_text())
    assert listed == [{"video_id": "video10000", "category": 2, "split": "test"}]
    assert (
        videos_in(tmp_path / "out" / "train.json")["video1"][0] == "video1 caption 12"
    )  # without numbers: as they come


MSVD = """# a header
# of two lines

mv89psg6zh4_33_46 a bird in a sink
mv89psg6zh4_33_46 a bird is bathing
-4wsuPCjDBc_5_15 a squirrel is eating
R_1_2_3 a clip outside of the splits
q_0_9
"""


def test_msvd_text_with_lists_of_ids(tmp_path):
    paths = [
        save(tmp_path / "AllVideoDescriptions.txt", MSVD),
        save(tmp_path / "train_list.txt", "mv89psg6zh4_33_46\nq_0_9\ngone_1_2\n"),
        save(tmp_path / "test_list.txt", "-4wsuPCjDBc_5_15.avi\n"),
    ]
    report = prepare_captions(paths, tmp_path / "out")
    train = videos_in(tmp_path / "out" / "train.json")
    assert train == {"mv89psg6zh4_33_46": ("a bird in a sink", "a bird is bathing")}
    assert report.videos == {"train": 1, "test": 1} and report.empty_captions == 1
    assert report.uncaptioned == {"train": 1} and report.examples["empty"] == "q_0_9"
    assert (report.unassigned, report.listed_only) == (1, ["gone_1_2"])
    assert list(videos_in(tmp_path / "out" / "unassigned.json")) == ["R_1_2_3"]


def test_control_characters_end_no_line(tmp_path):
    text = save(tmp_path / "train.txt", "a_0_1 a dog\x0bruns\u2028away\r\na_0_1 a cat\n")
    lines = save(tmp_path / "test.jsonl", '{"video_id": "b", "caption": "a\u2028b"}\n')
    report = prepare_captions([text, lines], tmp_path / "out")
    assert videos_in(tmp_path / "out" / "train.json") == {"a_0_1": ("a dog\x0bruns\u2028away", "a cat")}
    assert videos_in(tmp_path / "out" / "test.json") == {"b": ("a\u2028b",)}
    assert report.control_character_captions == 2


def test_flaws_of_videos_in_no_list_count_and_columns_have_any_case(tmp_path):
    mine = save(tmp_path / "mine.csv", "Video_ID,Caption\na,good\nb,more\nb,\n")
    report = prepare_captions([mine, save(tmp_path / "train_list.txt", "a\n")], tmp_path / "out")
    assert (report.unassigned, report.empty_captions) == (1, 1)
    split = save(tmp_path / "split.csv", "Video_ID,Caption,Split,Category\na,good,Val,3\n")
    assert prepare_captions([split], tmp_path / "split").videos == {"validate": 1}
    assert read_annotations(tmp_path / "split" / "val.json")[0].category == 3


def test_files_of_an_earlier_preparation_are_left_and_named(tmp_path):
    prepare_captions([save(tmp_path / "a.json", official({"video1": "train", "video2": "test"}))], tmp_path / "out")
    report = prepare_captions([save(tmp_path / "b.json", official({"video3": "train"}))], tmp_path / "out")
    assert report.left_alone == ["test.json"] and (tmp_path / "out" / "test.json").is_file()


def test_msvd_numbered_by_its_mapping(tmp_path):
    ids = {"a_0_1": "vid1200", "b_0_1": "vid1201", "c_0_1": "vid1300", "d_0_1": "vid1301"}
    text = save(tmp_path / "text.txt", "".join(f"{name} a caption\n" for name in ids))
    mapping = save(tmp_path / "youtube_mapping.txt", "".join(f"{name} {number}\n" for name, number in ids.items()))
    assert prepare_captions([text, mapping], tmp_path / "out").videos == {"train": 1, "validate": 2, "test": 1}


def test_msvds_csv_counts_what_is_not_english(tmp_path):
    table = "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    table += 'abc,3,9,1,clean,5,English,"a man, who runs"\nabc,3,9,1,clean,5,German,ein Mann\n'
    report = prepare_captions([save(tmp_path / "corpus.csv", table)], tmp_path / "out", split="train")
    assert videos_in(tmp_path / "out" / "train.json") == {"abc_3_9": ("a man, who runs",)}
    assert report.other_language_captions == 1


def test_own_tables_of_every_kind(tmp_path):
    table = "video_id,caption,split\ncats/tom.mp4,a cat,train\ntom,a cat sleeps,train\nrex,a dog,dev\n"
    lines = '{"video": "zoe", "captions": ["a bird", "it flies"], "category": 4}\n\n{"video": "lea", "text": "a fox"}\n'
    paths = [save(tmp_path / "mine.csv", table), save(tmp_path / "test-set.jsonl", lines)]
    paths.append(save(tmp_path / "x.tsv", "File\tSentence\tSplit\nmax\ta cow\ttest\n".lower()))
    report = prepare_captions(paths, tmp_path / "out")
    assert report.videos == {"train": 1, "validate": 1, "test": 3}
    assert videos_in(tmp_path / "out" / "train.json") == {"tom": ("a cat", "a cat sleeps")}
    test = videos_in(tmp_path / "out" / "test.json")
    assert test == {"zoe": ("a bird", "it flies"), "lea": ("a fox",), "max": ("a cow",)}


def test_a_random_split_stays_when_videos_join(tmp_path):
    def splits(count):
        rows = "".join(f"v{i},a caption\n" for i in range(count))
        prepare_captions([save(tmp_path / "mine.csv", f"video_id,caption\n{rows}")], tmp_path / str(count), "random")
        names = ("train", "val", "test")
        return {name: set(videos_in(tmp_path / str(count) / f"{name}.json")) for name in names}

    few, many = splits(200), splits(400)
    assert all(few[name] <= many[name] for name in few)
    assert 0.75 < len(many["train"]) / 400 < 0.85 and len(many["val"]) > 20 and len(many["test"]) > 20


def test_a_prepared_list_is_read_again(tmp_path):
    first = save(tmp_path / "a.json", official({"video1": "train"}))
    prepare_captions([first], tmp_path / "once")
    prepare_captions([tmp_path / "once" / "train.json"], tmp_path / "twice")
    assert videos_in(tmp_path / "once" / "train.json") == videos_in(tmp_path / "twice" / "train.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.csv", "video_id,caption\nv1,a\n", "mine.csv: no split for v1"),
        ("train.csv", "video_id,caption\nv1,a, b\n", "train.csv line 2: its number of fields differs"),
        ("train.csv", "video_id,caption\nv1\n", "train.csv line 2: its number of fields differs"),
        ("train.csv", "name,caption\nv1,a\n", "train.csv line 2: no video_id or videoid or .*id among name, caption"),
        (
            "train.csv",
            "video_id;caption\nv1;a;b\n",
            "train.csv line 2: its number of fields differs .* separate them by semicolons",
        ),
        ("train.tsv", "video_id\tcaption\nv1\n", "train.tsv line 2: its number of fields .* separate them by tabs"),
        ("train.csv", "", "train.csv: contains no row"),
        ("train.csv", "video_id,caption\n", "train.csv: contains no row"),
        (
            "train.csv",
            "video_id,caption\nx/v1.mp4,a\ny/v1.mp4,b\n",
            "line 3: y/v1.mp4 and x/v1.mp4 have the same id, v1",
        ),
        ("train.csv", "video_id,caption\nv1.avi,a\nv1.mp4,b\n", "line 3: v1.mp4 and v1.avi have the same id, v1"),
        ("train.csv", "video_id,caption\na/b,a\n", "'a/b' cannot be a file name"),
        ("train.csv", "video_id,caption\n..,a\n", "'..' cannot be a file name"),
        ("train.csv", "video_id,caption\nv\x001,a\n", "cannot be a file name for features; rename it"),
        ("train.zip", "PK, cut off", "train.zip: not a readable zip"),
        ("train.csv", "video_id,caption\n,a\n", "train.csv line 2: its video_id is empty"),
        ("train.csv", "video_id,caption,split\nv1,a,train\nv1,b,test\n", "v1 is in train and in test"),
        ("train.csv", "video_id,caption,category\nv1,a,cats\n", "the category is 'cats'"),
        ("train.csv", "video_id;caption\nv1;['a', 'b']\n", "line 2: the caption of v1 is a list in one cell"),
        ("train.jsonl", '{"video_id": "v1", "caption": 3}', "train.jsonl entry 1: the captions of v1"),
        ("train.jsonl", '{"video_id": "v1"', "train.jsonl line 1: not JSON"),
        ("text.txt", "a_1_2 good\nno id here\n", "text.txt line 2: 'no id here' is neither"),
        ("text.txt", "# nothing\n", "text.txt: contains no row"),
        ("train_list.txt", "a_1_2\n", "lists of ids, no captions"),
        ("raw-captions.pkl", "x", "a pickle can run any code"),
    ],
)
def test_a_bad_table_is_named_and_nothing_written(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare_captions([save(tmp_path / name, content)], tmp_path / "out")
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"video_id,caption\nv1,caf\xe9\n")
    with pytest.raises(InputError, match=r"train\.csv line 2: not UTF-8 \(byte 23\)"):
        prepare_captions([tmp_path / "train.csv"], tmp_path / "out")


def test_a_zip_without_annotations_says_what_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("videos/a.mp4", "x")
        archive.writestr("data.pickle", "x")
    with pytest.raises(InputError, match=r"other\.zip: contains no annotations .*videos/a\.mp4, data\.pickle"):
        prepare_captions([tmp_path / "other.zip"], tmp_path / "out")


def test_a_zipped_table_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("README.txt", "hello")
        archive.writestr("train.csv", "video_id,caption\nv1,a cat\n")
    assert prepare_captions([tmp_path / "mine.zip"], tmp_path / "out").captions == {"train": 1}


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train_list.txt": "a_0_1", "val_list.txt": "a_0_1"}, "a_0_1 is in validate, and in train by another list"),
        ({"train_list.txt": "vid1\nvid2"}, "none of the videos is in the lists, which name vid1, vid2"),
    ],
)
def test_lists_that_do_not_fit_are_named(tmp_path, lists, message):
    paths = [save(tmp_path / "text.txt", "a_0_1 a caption"), *(save(tmp_path / n, c) for n, c in lists.items())]
    with pytest.raises(InputError, match=message):
        prepare_captions(paths, tmp_path / "out")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="--split half"):
        prepare_captions([save(tmp_path / "a.csv", "video_id,caption\nv,a\n")], tmp_path / "out", "half")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="MSR-VTT's annotations (../shared/data/msrvtt) are not here")
@pytest.mark.slow
def test_the_official_zips(tmp_path):
    zips = [SHARED / "train_val_annotation.zip", SHARED / "test_videodatainfo.json.zip"]
    report = prepare_captions(zips, tmp_path)
    assert report.videos == {"train": 6513, "validate": 497, "test": 2990}
    assert sum(report.captions.values()) == 200_000 and report.duplicate_captions == 14_632
    first = read_annotations(tmp_path / "val.json")[0]
    assert (first.video_id, first.captions[0]) == ("video6513", "a family is having coversation")


def test_both_directions_are_named(tmp_path):
    videos = [{"video_id": v, "category": 0, "captions": ["a"]} for v in ("v1", "v2", "v3")]
    (tmp_path / "train.json").write_text(json.dumps(videos))
    asked = [{"video": v, "question": "what?", "answer": "a"} for v in ("v1", "v9", "v9")]
    (tmp_path / "val_qa.json").write_text(json.dumps(asked))
    for name in ("v1", "v3", "v5", "v4"):
        write_features(tmp_path / "features", name, {"video": np.ones((1, 8))})
    store = FeatureStore(tmp_path / "features")
    report = compare_with_features(tmp_path, store)
    assert report.videos == {"train.json": 3, "val_qa.json": 2}
    assert report.missing == {"train.json": ["v2"], "val_qa.json": ["v9"]}
    assert report.unannotated == ["v4", "v5"] and not report.ok
    assert report.lacking == {"video": ["v2", "v9"]}


def test_a_folder_without_annotations_is_named(tmp_path):
    (tmp_path / "video").mkdir()
    with pytest.raises(InputError, match=r"contains none of train\.json"):
        compare_with_features(tmp_path, FeatureStore(tmp_path))


LINES = '{"video_id": "v1", "caption": "a"}\n\n{"video_id": "v1", "caption": "b\u2028c"}\n'
TABLE = 'video_id;caption\nv1;"a"\nv1;b\u2028c\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "train.json",
            [{"video_id": "v1", "video": "x.mp4", "caption": ["a", "b\u2028c"], "id": 7}],
        ),  # copies on the hub
        ("train.json", [{"videoID": "v1", "enCap": ["a", "b\u2028c"], "chCap": ["\u4e00"]}]),  # VATEX
        ("train.json", {"v1": ["a", "b\u2028c"]}),
        ("data.json", {"train": [{"Video ID": "v1", "caption": ["a", "b\u2028c"]}], "test": []}),
        ("train.json", {"video_id": "v1", "captions": ["a", "b\u2028c"], "category": 3.0}),
        ("train.json", {"v1": {"duration": 3.5, "sentences": ["a", "b\u2028c"]}}),
        ("train.json", LINES),
        ("train.jsonl", LINES),
        ("train.jsonl", [{"file": "clips/v1.mp4", "text": "a"}, {"file": "clips/v1.mp4", "text": "b\u2028c"}]),
        ("train.csv", TABLE),
        ("train.csv", TABLE.replace(";", "\t")),
        ("train.tsv", TABLE.replace(";", ",")),
        ("train.txt", TABLE.replace(";", "|")),
        ("train.csv", 'Filename,Caption,"x;y;z"\nv1.mp4,a,1\nv1.mp4,b\u2028c,2\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_tables_in_every_form_and_encoding(tmp_path, name, content, encoding):
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode(encoding))
    prepare_captions([tmp_path / name], tmp_path / "out")
    assert videos_in(tmp_path / "out" / "train.json") == {"v1": ("a", "b\u2028c")}


@pytest.mark.parametrize(
    "lists",
    [
        {"train_list.txt": "video1\nvideo2\n", "test_list.txt": "video3.mp4\n"},
        {"train.9k.csv": "video_id\nvideo1\nvideo2\n", "1k-A_test.csv": "key,video_id\nret0,video3\n"},
        {
            "train.9k.csv": "video_id\nvideo1\nvideo2\n",
            "test.csv": "key,video_id,sentence\nret0,video3,video3 caption 7\n",
        },
        {"train_ids.json": ["video1", "video2"], "test_ids.json": ["video3"]},
        {"splits.json": {"train": ["video1", "video2"], "test": ["video3"]}},
        {"splits.csv": "video_id,split\nvideo1,train\nvideo2,train\nvideo3,test\n"},
    ],
)
def test_lists_decide_where_the_official_file_has_another_split(tmp_path, lists):
    own = {"video1": "train", "video2": "validate", "video3": "test", "video4": "train"}
    paths = [save(tmp_path / "data.json", official(own)), *(save(tmp_path / n, c) for n, c in lists.items())]
    report = prepare_captions(paths, tmp_path / "out")
    assert report.videos == {"train": 2, "test": 1} and (report.moved, report.unassigned) == (1, 1)
    assert list(videos_in(tmp_path / "out" / "train.json")) == ["video1", "video2"]


def test_lists_give_the_split_that_the_official_file_lacks(tmp_path):
    content = official({"video1": "train", "video2": "train"})
    for video in content["videos"]:
        del video["split"]
    paths = [save(tmp_path / "data.json", content), save(tmp_path / "test_list.txt", "video2\n")]
    report = prepare_captions(paths, tmp_path / "out")
    assert report.videos == {"test": 1} and (report.moved, report.unassigned) == (0, 1)


def test_a_random_split_moves_videos_of_any_split(tmp_path):
    path = save(tmp_path / "data.json", official({f"video{n}": "train" for n in range(60)}))
    report = prepare_captions([path], tmp_path / "out", "random")
    assert len(report.videos) == 3 and sum(report.videos.values()) == 60
    assert report.moved == 60 - report.videos["train"] > 0


@pytest.mark.parametrize(
    ("split", "lists", "message"),
    [
        ("train", [], r"--split train: .*data\.json has video2 in test; leave --split out"),
        ("random", ["train_list.txt"], r"--split random: .*train_list\.txt already gives the splits"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(tmp_path, split, lists, message):
    paths = [save(tmp_path / "data.json", official({"video1": "train", "video2": "test"}))]
    paths += [save(tmp_path / name, "video1\n") for name in lists]
    with pytest.raises(InputError, match=message):
        prepare_captions(paths, tmp_path / "out", split)
    assert not (tmp_path / "out").exists()
