"""Features from bytes that nobody vouches for."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from serving.uploads import npy_array, safetensors_items
from videoblip2.config import InputError


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file_is_read_as_numpy_reads_it(dtype, order):
    array = np.asarray(np.arange(15).reshape(5, 3), dtype, order=order)
    read = npy_array(npy(array), "video_features")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array.astype("float32"))


def test_no_rows_are_an_array_too():
    assert npy_array(npy(np.zeros((0, 512), "float32")), "audio_features").shape == (0, 512)


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        npy(np.ones((4, 3)))[:-1],
        npy(np.ones((4, 3))) + b"x",
        npy(np.ones((4, 3), int)),
        npy(np.ones(12)),
        npy(np.ones((2, 3, 4))),
        npy(np.array([[object()]], dtype=object), allow_pickle=True),
        pickle.dumps({"a": 1}),
        header("(1000000000, 768)"),
        header("(99999999999999999999, 768)"),
        header("(-1, -16)"),
        header("(4, 4)", "<f16"),
        header("(" * 200),
        header("__import__('os').abort()"),
    ],
    ids=range(15),
)
def test_anything_else_is_refused_in_one_line_with_its_name(content):
    with pytest.raises(InputError, match="video_features: ") as caught:
        npy_array(content, "video_features")
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 300), st.binary(min_size=1, max_size=4), st.integers(0, 300))
def test_broken_files_are_never_more_than_refused(place, patch, cut):
    for content, read in (
        (npy(np.ones((4, 3), "float32")), lambda bytes: npy_array(bytes, "f")),
        (save({"video": np.ones((4, 3), "float32")}), lambda bytes: safetensors_items(bytes, "f")),
    ):
        broken = (content[:place] + patch + content[place + len(patch) :])[: len(content) - cut % len(content)]
        try:
            read(broken)
        except InputError as error:
            assert str(error).startswith("f: ")


def test_one_item_in_safetensors():
    video, audio = np.ones((4, 3), "float16"), np.ones((2, 5), "float64")
    (item,) = safetensors_items(save({"video": video, "audio": audio}), "features")
    assert (item["video"].dtype, item["audio"].shape) == (np.float32, (2, 5))


def test_many_items_come_in_the_order_of_their_names():
    tensors = {f"video{n}.video": np.full((n, 3), n, "float32") for n in (10, 2)}
    items = safetensors_items(save({**tensors, "video2.audio": np.ones((1, 5), "float32")}), "features")
    assert [{name: array.shape for name, array in item.items()} for item in items] == [
        {"video": (2, 3), "audio": (1, 5)},
        {"video": (10, 3)},
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"picture": np.ones((4, 3), "float32")}, "tensor 'picture'; name them video or audio"),
        ({}, "contains no tensor; name them video or audio"),
    ],
)
def test_tensors_that_do_not_say_what_the_items_are(tensors, message):
    with pytest.raises(InputError, match=message):
        safetensors_items(save(tensors), "features")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b.audio": np.ones((4, 3), "float32")}, "has b.audio and no b.video"),
        ({"b.video": np.ones((4, 3), "int64")}, "b.video: contains int64 [4, 3]; send floats"),
        ({"b.video": np.ones(4, "float32")}, "b.video: contains float32 [4]; send floats"),
        ({"b.video": np.ones((4, 3), "float32"), "b.audio": np.ones(4, "float32")}, "b.audio: contains float32 [4]"),
    ],
)
def test_a_bad_item_fails_alone(tensors, message):
    good = {"a.video": np.ones((2, 3), "float32"), "c.video": np.ones((1, 3), "float32")}
    first, bad, last = safetensors_items(save({**good, **tensors}), "features")
    assert len(first["video"]) == 2 and len(last["video"]) == 1
    assert isinstance(bad, InputError) and message in str(bad)
