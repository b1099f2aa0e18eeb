"""The look at a form: what is refused, wherever the chunks break."""

import pytest

from serving.answers import Refusal
from serving.forms import FormWatch

TYPE = "multipart/form-data; boundary=b"


def part(name='name="video"', data=b"x", filename='; filename="v.mp4"'):
    return f"--b\r\nContent-Disposition: form-data; {name}{filename}\r\n\r\n".encode() + data + b"\r\n"


def watch(body, chunk=11, files=("video",)):
    form = FormWatch(TYPE, files)
    for start in range(0, len(body), chunk):
        form.feed(body[start : start + chunk])
    form.finish()


END = b"--b--\r\n"
TEXT = {"name": 'name="prompt"', "filename": ""}


@pytest.mark.parametrize("chunk", [1, 3, 64, 10_000])
@pytest.mark.parametrize(
    "body",
    [
        part() + END,
        part(data=b"\r\n--bb\r\n" * 50) + END,
        part() + part(**TEXT, data=b"what is http://this?") + END,
        part(**TEXT, data=b"3") + part(**TEXT, data=b'{"a": [1]}') + part(**TEXT, data=b"\xff\xfe") + END,
        part(filename='; filename=""') + END,
    ],
)
def test_good_forms_pass(body, chunk):
    watch(body, chunk)


@pytest.mark.parametrize("chunk", [1, 5, 10_000])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (part(filename="", data=b"http://127.0.0.1/v.mp4") + END, "video: takes a file"),
        (part(filename="", data=b"plain") + END, "video: takes a file"),
        (part() + part(filename="", data=b"http://x") + END, "video: takes a file"),
        (part(filename=f'; filename="{"n" * 200}"') + END, "name"),
        (part(filename='; filename="a\x00b"') + END, "name|damaged"),
        (part(name='named="video"') + END, "no name"),
        (part(name=f'name="{"n" * 5000}"') + END, "damaged"),
        (part(**TEXT, data=b"[" * 30_000) + END, "neither words nor a number"),
        (part(**TEXT, data=b"9" * 9000) + END, "neither words nor a number"),
        (part(**TEXT, data=b"x" * 70_000) + END, "longer than 64 KiB"),
        (b"".join(part(**TEXT) for _ in range(300)) + END, "more than 256 parts"),
        (part(), "ends before"),
        (b"", "ends before"),
        (b"no form at all", "damaged"),
    ],
)
def test_bad_forms_are_refused_with_the_reason(body, message, chunk):
    with pytest.raises(Refusal, match=message):
        watch(body, chunk)


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'b' * 201}"])
def test_a_form_without_a_usable_boundary(boundary):
    with pytest.raises(Refusal, match="boundary"):
        FormWatch(f"multipart/form-data{boundary}", ())
