"""Starting with and without a page, and the guard in front of it."""

import sys

import pytest
from serving_app import Registry

pytest_plugins = ["serving_app"]


def test_without_gradio_the_description_stands_at_the_root_and_says_how_to_get_the_page(start, monkeypatch):
    monkeypatch.setattr(sys.modules["serving.page"], "installed", lambda: False)
    with start(Registry(), PAGE="true") as client:
        assert "pip install 'videoblip2[ui]'" in client.get("/").text
        assert "swagger-ui" in client.get("/").text
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404


def test_a_file_of_references_that_is_none_ends_the_start_with_one_line(service, monkeypatch, tmp_path):
    monkeypatch.setenv("VB2_REFERENCES", str(tmp_path / "gone.json"))
    with pytest.raises(Exception, match=r"gone.json: no such file"):
        service.inner.check_model()


def test_pages_pass_the_guards_limits(start):
    pytest.importorskip("gradio", reason="gradio is not installed (extra ui)")
    with start(Registry(), PAGE="true", MAX_UPLOAD_MB="0.001", API_KEY="k") as client:
        assert client.get("/", headers={"Accept": "text/html"}).headers["www-authenticate"].startswith("Basic realm=")
        client.auth = ("anyone", "k")
        assert client.get("/").status_code == 200
        answer = client.post("/gradio_api/upload", files={"files": ("a.mp4", b"x" * 3000)})
        assert answer.status_code == 413
