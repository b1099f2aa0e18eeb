"""Packed features: the same as their folder's, replaced atomically, refused if damaged."""

import json
import mmap
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from videoblip2.cli import main
from videoblip2.config import InputError
from videoblip2.features import packed
from videoblip2.features.manifest import FeatureManifest
from videoblip2.features.pack import pack_features
from videoblip2.features.store import FeatureStore, check_features, digest, write_features

MANIFEST = {"clip": {"name": "c"}, "videos": {"video2": {"audio": "present"}, "video9": {"audio": "silent"}}}
LENGTHS = {"video2": (4, 3), "video9": (7, 1), "video10": (1, 0)}


def fill(root, kind=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    for video_id, (frames, windows) in LENGTHS.items():
        video, audio = rng.normal(size=(frames, 768)), rng.normal(size=(windows, 512))
        write_features(root, video_id, {"video": video.astype(kind), "audio": audio.astype(kind)})
    FeatureManifest.model_validate(MANIFEST).write(root)
    return root


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "folder")


@pytest.fixture
def file(folder, tmp_path):
    return pack_features(folder, tmp_path / "packed.safetensors").out


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_both_forms_give_the_same(tmp_path, kind):
    folder = FeatureStore(fill(tmp_path / "folder", kind))
    report = pack_features(folder.root, tmp_path / "packed.safetensors")
    store = FeatureStore(report.out)
    assert (report.videos, report.absent) == (3, 1)
    assert report.kinds == {"video": np.dtype(kind).name, "audio": np.dtype(kind).name}
    assert store.ids == folder.ids == list(
        LENGTHS
    ) and store.manifest == folder.manifest == FeatureManifest.model_validate(MANIFEST)
    for video_id, (frames, windows) in LENGTHS.items():
        for found, expected, length in (
            (store.array("video", video_id), folder.array("video", video_id), frames),
            (store.array("audio", video_id), folder.array("audio", video_id), windows),
        ):
            assert found.dtype == np.float32 and found.flags.writeable and len(found) == length
            np.testing.assert_array_equal(found, expected)
        assert store.stored("video", video_id).dtype == kind
    assert digest(store, LENGTHS) == digest(folder, LENGTHS)
    assert (store.packed, folder.packed) == (True, False)


def test_absent_audio_is_told_apart_from_silent(file, folder):
    for report in (check_features(file), check_features(folder)):
        assert report.ok and report.absent == ["video10"] and report.silent == ["video9"]


def test_where_types_are_mixed_the_widest_holds_every_number(folder, tmp_path):
    exact = np.full((2, 768), 1 / 3)
    np.save(folder / "video" / "video10.npy", exact)
    np.save(folder / "audio" / "video10.npy", np.zeros((0, 512)))  # no rows, no reason for a wider type
    before = FeatureStore(folder).array("video", "video2")
    report = pack_features(folder, tmp_path / "packed")
    assert report.kinds == {"video": "float64", "audio": "float32"}
    store = FeatureStore(report.out)
    np.testing.assert_array_equal(store.stored("video", "video10"), exact)
    np.testing.assert_array_equal(store.array("video", "video2"), before)


def test_a_folder_without_a_manifest_has_none_packed_either(folder, tmp_path):
    (folder / "manifest.json").unlink()
    assert FeatureStore(pack_features(folder, tmp_path / "packed").out).manifest is None


def test_it_is_a_plain_safetensors_file(file):
    tensors = load_file(file)
    assert tensors["video"].shape == (12, 768) and tensors["audio_rows"].tolist() == [3, 1, 0]
    assert json.loads(tensors["ids"].tobytes()) == list(LENGTHS)


def test_an_open_store_is_not_touched_by_the_next_packing(file, tmp_path):
    opened = FeatureStore(file)
    before = opened.array("video", "video2")
    pack_features(fill(tmp_path / "other", seed=1), file)
    np.testing.assert_array_equal(opened.array("video", "video2"), before)
    assert not np.array_equal(FeatureStore(file).array("video", "video2"), before)


def test_what_was_read_is_the_readers_own(file):
    store = FeatureStore(file)
    store.array("video", "video2")[:] = 0
    assert store.array("video", "video2").any()
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.array("video", "video2"), store.array("video", "video2"))


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from videoblip2.features.pack import pack_features
how, folder, out = sys.argv[1:]

def killed(ids, count, name):
    for number, video_id in enumerate(ids):
        if name == "pack audio" and number == 1:
            assert list(Path(out).parent.glob(".packed*.part"))
            os.kill(os.getpid(), signal.SIGKILL)
        yield video_id

if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
pack_features(folder, out, **({"progress": killed} if how == "killed" else {}))
"""


def pack_in_a_process(how, folder, out):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", CHILD, how, str(folder), str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_kill_in_the_middle_leaves_the_old_store_and_the_next_packing_cleans_up(file, tmp_path):
    before, other = file.read_bytes(), fill(tmp_path / "other", seed=1)
    assert pack_in_a_process("killed", other, file).returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    fresh = tmp_path / "packed.fresh"
    assert pack_in_a_process("killed", other, fresh).returncode == -signal.SIGKILL
    assert not fresh.exists() and len(list(tmp_path.glob(".packed*.part"))) == 2
    for out in (file, fresh):
        pack_features(other, out)
        packed, folder = (FeatureStore(root).array("video", "video9") for root in (out, other))
        np.testing.assert_array_equal(packed, folder)
    assert not list(tmp_path.glob(".*"))


def test_no_room_leaves_the_old_store_and_nothing_else(file, folder, tmp_path):
    before = file.read_bytes()
    run = pack_in_a_process("full", folder, file)
    assert "cannot be written (File too large); free some space" in run.stderr.splitlines()[-1]
    assert file.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_an_unusable_video_is_named_and_the_old_store_stays(file, folder, tmp_path):
    before = file.read_bytes()
    for damage, message in (
        (lambda: np.save(folder / "audio" / "video10.npy", np.full((1, 512), np.nan, np.float32)), "NaN or infinity"),
        (lambda: (folder / "audio" / "video10.npy").unlink(), "video10 has no audio features"),
        (lambda: np.save(folder / "video" / "video10.npy", np.zeros((0, 768), np.float32)), "has no rows"),
    ):
        damage()
        with pytest.raises(InputError, match=message) as caught:
            pack_features(folder, file)
        assert "video10" in str(caught.value) and file.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_two_packings_at_once_leave_each_others_draft_alone(folder, tmp_path):
    def pack_within(ids, count, name):
        for number, video_id in enumerate(ids):
            if number == 1:
                pack_features(folder, tmp_path / "packed")
            yield video_id

    assert FeatureStore(pack_features(folder, tmp_path / "packed", pack_within).out).ids == list(LENGTHS)


def shortened(file):
    os.truncate(file, file.stat().st_size - 1)


def lengthened(file):
    with file.open("ab") as end:
        end.write(b"0")


def cut_in_the_header(file):
    os.truncate(file, 100)


def emptied(file):
    os.truncate(file, 0)


def of_another_kind(file):
    save_file({"video": np.zeros((1, 768), np.float32)}, file)


def of_a_later_format(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"format": "1"', b'"format": "7"', 1))


def with_an_index(**changes):
    def change(file):
        tensors = load_file(file) | {name: np.asarray(values) for name, values in changes.items()}
        save_file(tensors, file, metadata={"format": "1"})

    return change


def as_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shortened, "truncated"),
        (lengthened, "truncated"),
        (cut_in_the_header, "truncated"),
        (emptied, "truncated"),
        (of_another_kind, "not packed features"),
        (of_a_later_format, "format 7; update videoblip2"),
        (with_an_index(video_rows=[4, 7, 2]), "12 rows, but the videos have 13"),
        (with_an_index(video_rows=[13, 0, -1]), "not one count"),
        (with_an_index(audio_rows=[3, 1]), "not one count for each of 3"),
        (with_an_index(audio_rows=np.array([3, 1, 0], np.float32)), "not one count"),
        (with_an_index(audio=np.zeros((4, 512), np.int64)), "audio is I64"),
        (with_an_index(audio=np.zeros(4, np.float32)), "audio is F32"),
        (with_an_index(ids=as_bytes(["video2", "video2", "video10"])), "twice"),
        (with_an_index(ids=as_bytes({"video2": 1})), "ids is not a JSON list of videos"),
        (with_an_index(ids=np.frombuffer(b"[", np.uint8)), "ids is not a JSON list of videos"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(file, damage, message):
    damage(file)
    with pytest.raises(InputError, match=message) as caught:
        FeatureStore(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_manifest_or_array_is_refused_when_it_is_read(file):
    with_an_index(manifest=as_bytes([]))(file)
    with pytest.raises(InputError, match="manifest"):
        _ = FeatureStore(file).manifest
    nan = np.full((4, 512), np.nan, np.float32)
    with_an_index(audio=nan, manifest=as_bytes(None))(file)
    with pytest.raises(InputError, match=r"audio features of video9.*NaN"):
        FeatureStore(file).array("audio", "video9")
    assert list(check_features(file).unusable) == ["video2", "video9"]
    with pytest.raises(InputError, match="video3 has no video features"):
        FeatureStore(file).array("video", "video3")


def test_a_header_that_lies_about_its_own_length(file):
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])
    with pytest.raises(InputError, match="truncated"):
        FeatureStore(file)


def test_a_packed_file_is_no_place_to_extract_into(file):
    with pytest.raises(InputError, match="extract into a folder"):
        FeatureManifest.read(file)


@pytest.fixture
def requests(monkeypatch):
    """The advice given to the kernel: ranges of the file, and ranges of the map with the kind of advice."""
    made = SimpleNamespace(whole=[], rows=[])

    class Pages(mmap.mmap):
        def madvise(self, advice, start, length):
            made.rows.append((advice, start, length))

    monkeypatch.setattr(packed.mmap, "mmap", Pages)
    monkeypatch.setattr(
        packed.os, "posix_fadvise", lambda fd, start, length, advice: made.whole.append((start, length))
    )
    monkeypatch.setattr(packed.threading, "Thread", lambda target, **_: SimpleNamespace(start=target))
    return made


def where(file, modality):
    with safe_open(file, framework="numpy") as opened:
        rows = opened.get_tensor(modality).tobytes()
    return file.read_bytes().index(rows), len(rows)


def test_all_of_a_modality_is_asked_for_once_reading_goes_on(file, requests, monkeypatch):
    monkeypatch.setattr(packed.PackedRows, "PIECE", 30_000)
    start, length = where(file, "video")
    store = FeatureStore(file)
    for _ in range(packed.PackedRows.FIRST):
        store.array("video", "video2")
    assert not requests.whole and (mmap.MADV_NORMAL, 0, start + length) not in requests.rows
    for _ in range(10):
        store.array("video", "video2")
    assert requests.whole == [(start + step, 30_000) for step in range(0, length, 30_000)] and length > 30_000
    assert requests.rows[-1] == (mmap.MADV_NORMAL, start - start % mmap.PAGESIZE, length + start % mmap.PAGESIZE)


def test_more_than_half_of_the_memory_is_never_asked_for_as_a_whole(file, requests, monkeypatch):
    half = SimpleNamespace(total=2 * where(file, "video")[1] - 2)
    monkeypatch.setattr(packed.psutil, "virtual_memory", lambda: half)
    store = FeatureStore(file)
    for _ in range(packed.PackedRows.FIRST + 3):
        store.array("video", "video2")
    assert not requests.whole and requests.rows[-1][0] == mmap.MADV_WILLNEED


def test_a_read_asks_for_its_own_rows_alone(file, requests):
    store = FeatureStore(file)
    assert {advice for advice, *_ in requests.rows} == {mmap.MADV_RANDOM}
    requests.rows.clear()
    for video_id in store.ids:
        own = store.array("video", video_id).tobytes()
        [(advice, start, length)] = requests.rows
        content = file.read_bytes()[start : start + length]
        assert advice == mmap.MADV_WILLNEED and start % mmap.PAGESIZE == 0 and content.endswith(own)
        assert length < len(own) + mmap.PAGESIZE
        requests.rows.clear()


@pytest.mark.parametrize("missing", ["posix_fadvise", "MADV_RANDOM"])
def test_a_system_that_takes_no_advice_is_given_none(file, requests, monkeypatch, missing):
    monkeypatch.delattr(packed.mmap if missing.startswith("MADV") else packed.os, missing)
    store = FeatureStore(file)
    for _ in range(packed.PackedRows.FIRST + 3):
        assert len(store.array("video", "video2")) == LENGTHS["video2"][0]
    assert not requests.whole and not requests.rows


def vb2(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["vb2", "features", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr()


def test_the_command_packs_and_says_what(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out" / "packed"
    code, printed = vb2(monkeypatch, capsys, "pack", folder, out, "--json")
    line, record = printed.out.splitlines()
    assert code == 0 and "3 videos, 1 without audio, video float32, audio float32" in line
    assert json.loads(record)["videos"] == 3 and json.loads(record)["out"] == str(out)
    code, printed = vb2(monkeypatch, capsys, "check", out, "--json")
    assert code == 0 and json.loads(printed.out.splitlines()[-1])["absent"] == ["video10"]


def test_the_commands_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty" / "video").mkdir(parents=True)
    shutil.copy(folder / "manifest.json", tmp_path / "text")
    for words, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), "no video/ folder"),
        ((tmp_path / "empty", tmp_path / "out"), "has no videos"),
        ((folder, folder), "is a folder; name a file"),
        ((folder, tmp_path / "text" / "out"), "cannot be written"),
        ((tmp_path / "text", tmp_path / "out"), "not packed features"),
    ):
        code, printed = vb2(monkeypatch, capsys, "pack", *words)
        assert code == 1 and len(printed.err.splitlines()) == 1 and message in printed.err
