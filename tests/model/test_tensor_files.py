"""Opening files of weights: every kind that can be read, and one line for every kind that cannot."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from videoblip2.config import InputError
from videoblip2.model.tensor_files import read_tensors, sniff, weights_file

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5000, dtype=torch.float16)}


class RunsCode:
    """Writes a file when unpickled in the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def same(read) -> bool:
    return read.keys() == TENSORS.keys() and all(read[name].equal(TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "module"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_torch_files(tmp_path, wrapper, new):
    content = {wrapper: TENSORS, "epoch": 3} if wrapper else TENSORS | {"epoch": 3}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert sniff(tmp_path / "w.pth") == ("torch" if new else "torch (before 1.6)")
    assert same(read_tensors(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"], ids=["by its name", "under another name"])
def test_safetensors(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    assert sniff(tmp_path / name) == "safetensors"
    assert same(read_tensors(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "only.pth"])
def test_a_folder_gives_its_weights(tmp_path, name):
    write(tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert weights_file(tmp_path) == tmp_path / name
    assert same(read_tensors(tmp_path))


@pytest.mark.parametrize(
    "lay", [lambda folder: write(folder / "pytorch_model.bin"), lambda folder: shards(folder, "bin")]
)
def test_a_hub_name_gives_the_weights_in_the_hubs_cache(tmp_path, monkeypatch, lay):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--o--bert"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("c0ffee")
    (model / "snapshots" / "c0ffee").mkdir(parents=True)
    lay(model / "snapshots" / "c0ffee")
    assert same(read_tensors("o/bert"))
    with pytest.raises(
        InputError, match=r"^o/other: no such file or folder, and not available from the hub .*HF_HUB_OFFLINE"
    ):
        read_tensors("o/other")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in place of a repository on the hub: what matches the patterns asked for is copied into the cache."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"

    def download(name, allow_patterns):
        for file in filter_repo_objects((path.name for path in hub.iterdir()), allow_patterns=allow_patterns):
            shutil.copy(hub / file, cache / file)
        return str(cache)

    for folder in (hub, cache):
        folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


@pytest.mark.parametrize("there", [["pytorch_model.bin", "model.safetensors"], ["pytorch_model.bin"]])
def test_a_hub_name_is_downloaded_safetensors_first(tmp_path, hub, there):
    for name in there:
        write(hub / name)
    assert weights_file("o/bert") == tmp_path / "cache" / there[-1]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == there[-1:]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_hub_name_is_downloaded_with_its_shards(hub, suffix):
    shards(hub, suffix, "model-{}-of-2" if suffix == "safetensors" else "pytorch_model-{}-of-2")
    assert same(read_tensors("o/large"))


def test_a_hub_name_without_weights_is_refused(hub):
    write(hub / "tf_model.h5")
    with pytest.raises(InputError, match=r"^o/none: a folder without model.safetensors or"):
        weights_file("o/none")


def test_model_safetensors_goes_before_other_files(tmp_path):
    write(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert same(read_tensors(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path, suffix):
    assert same(read_tensors(shards(tmp_path, suffix)))
    assert same(read_tensors(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is mapped")
def test_zip_files_are_mapped_not_copied(tmp_path):
    torch.save({"big": torch.zeros(1000)}, tmp_path / "w.pth")
    tensor = read_tensors(tmp_path / "w.pth")["big"]
    assert str(tmp_path / "w.pth") in Path("/proc/self/maps").read_text()
    assert tensor.sum() == 0


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path, new):
    torch.save(
        {"model": TENSORS, "x": RunsCode(tmp_path / "ran")}, tmp_path / "w.pth", _use_new_zipfile_serialization=new
    )
    refused(tmp_path / "w.pth", r"Python objects besides tensors \(posix.mkdir\).*re-save only its tensors")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    refused(tmp_path / "w.pkl", "a Python pickle that torch did not write")
    assert not (tmp_path / "ran").exists()


HEADS = {
    b"": "an empty file",
    b"<!DOCTYPE html><html>Sign in</html>": "an HTML or XML page",
    b"\n  <?xml version='1.0'?><Error/>": "an HTML or XML page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n": "a Git LFS pointer.*git lfs pull",
    b'{"model_type": "bert"}': "a JSON text",
    b"\x1f\x8b\x08\x00": "a gzip archive",
    b"\x93NUMPY\x01\x00": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"hello, these are not weights": "neither a torch file nor safetensors.*b'hello, t'",
}


@pytest.mark.parametrize("content", HEADS, ids=HEADS.values())
def test_another_kind_of_file(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", HEADS[content])


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "old.bin"])
def test_a_file_cut_short(tmp_path, name, part):
    content = write(tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    refused(tmp_path / name, "truncated")


def test_a_zip_and_a_torchscript_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "z.pth", "a zip archive that torch did not write")
    with zipfile.ZipFile(tmp_path / "s.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")
    refused(tmp_path / "s.pth", "a TorchScript program")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains a list, not named tensors"),
        (torch.ones(2), "contains a Tensor, not named tensors"),
        ({"epoch": 3}, r"no named tensors \(found 'epoch'\)"),
        ({"model": {}}, r"no named tensors \(found nothing\)"),
    ],
)
def test_a_torch_file_without_named_tensors(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", message)


def test_missing_file_and_folder_without_weights(tmp_path):
    refused(tmp_path / "none.pth", "no such file or folder; `vb2 weights fetch`")
    (tmp_path / "a.pth").touch()
    (tmp_path / "b.pth").touch()
    refused(tmp_path, r"a folder without model.safetensors.*weights here: a.pth, b.pth")


def test_a_damaged_index(tmp_path):
    index = shards(tmp_path, "safetensors")
    whole = json.loads(index.read_text())
    cases = {
        "no weight_map": "[]",
        "not in the shards it names .first: 'c'": json.dumps(
            {"weight_map": whole["weight_map"] | {"c": "0.safetensors"}}
        ),
        "shard 9.bin is missing": json.dumps({"weight_map": {"a.weight": "9.bin"}}),
        "names '../x' as a shard": json.dumps({"weight_map": {"a.weight": "../x"}}),
        "names 'model.safetensors.index.json' as a shard": json.dumps({"weight_map": {"a": index.name}}),
    }
    for message, content in cases.items():
        index.write_text(content)
        refused(index, message)


def write(path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=path.name != "old.bin")
    return path


def shards(folder: Path, suffix: str, name: str = "{}") -> Path:
    places = {tensor: f"{name.format(number)}.{suffix}" for number, tensor in enumerate(TENSORS)}
    for name, shard in places.items():
        part = {name: TENSORS[name]}
        if suffix == "safetensors":
            save_file(part, folder / shard)
        else:
            torch.save(part, folder / shard)
    index = folder / ("model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    return index


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
