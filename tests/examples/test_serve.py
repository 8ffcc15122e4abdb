"""The service answers what padim-predict prints, and bears with what clients send."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from golden.variants import write_variant
from PIL import Image

pytest.importorskip("fastapi", reason="needs FastAPI: pip install '.[serve]'")
testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI's TestClient needs httpx", exc_type=RuntimeError)

ROOT = Path(__file__).parents[2]


def environment(model):
    """Of a process that has the service's modules and a model."""
    return {"PADIM_MODEL": str(model), "PYTHONPATH": ":".join([str(ROOT), *sys.path])}


@pytest.fixture
def model(tmp_path):
    return write_variant(tmp_path / "model.onnx", resize=[40])


@pytest.fixture
def client(model, monkeypatch):
    """A client of the service."""
    monkeypatch.setenv("PADIM_MODEL", str(model))
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    return testclient.TestClient(importlib.import_module("serve").app)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(path)
    return path


def test_an_answer_is_the_line_of_padim_predict(client, model, picture, run):
    answer = client.post("/predict", content=picture.read_bytes())
    assert answer.status_code == 200
    line = json.loads(run("predict", "--model", model, picture).out)
    assert line.pop("path") == str(picture)
    assert (line["verdict"], len(line["regions"]) > 0) == ("anomalous", True)
    assert answer.json() == line


def test_the_heatmap_is_the_picture_of_padim_predict(client, model, picture, tmp_path, run):
    answer = client.post("/predict?heatmap=true", content=picture.read_bytes()).json()
    run("predict", "--model", model, picture, "--out", tmp_path / "out")
    found = Image.open(io.BytesIO(b64decode(answer["heatmap"])))
    assert (found.format, found.size) == ("PNG", (60, 90))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(tmp_path / "out/part_heatmap.png")))


def test_what_is_no_image_is_refused_in_one_line(client, picture):
    for content in (b"", b"no image", picture.read_bytes()[:200], b"%PDF-1.4"):
        answer = client.post("/predict", content=content)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("can't read the image upload: ")
        assert not {"\n", "/"} & {*answer.json()["detail"]}
    assert client.post("/predict", content=picture.read_bytes()).status_code == 200


def test_uploads_are_bounded(client, picture, monkeypatch):
    size = picture.stat().st_size
    monkeypatch.setattr(sys.modules["serve"], "LARGEST", size)
    assert client.post("/predict", content=picture.read_bytes()).status_code == 200
    refused = client.post("/predict", content=picture.read_bytes() + b"0")
    assert (refused.status_code, refused.json()["detail"]) == (413, f"an image may have {size} bytes")


def test_an_upload_without_an_end_is_cut_off(client):
    class Endless:
        async def stream(self):
            while True:
                yield bytes(10**7)

    with pytest.raises(sys.modules["fastapi"].HTTPException, match="413"):
        asyncio.run(sys.modules["serve"].received(Endless()))


def test_an_upload_that_is_broken_off_is_an_answer_and_no_traceback(client):
    class BrokenOff:
        async def stream(self):
            yield b"an image"
            raise sys.modules["starlette.requests"].ClientDisconnect

    with pytest.raises(sys.modules["fastapi"].HTTPException, match="400"):
        asyncio.run(sys.modules["serve"].received(BrokenOff()))


@pytest.mark.slow
def test_it_needs_no_torch(model, picture, tmp_path):
    code = (
        "import sys, serve; from pathlib import Path;"
        f"print(serve.scored(Path({str(picture)!r}).read_bytes(), True)['verdict'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(model), capture_output=True, text=True)
    assert done.stdout == "anomalous False\n", done.stderr


@pytest.mark.slow
def test_a_model_that_is_missing_is_said_in_one_line(tmp_path):
    command = [sys.executable, "-c", "import serve"]
    done = subprocess.run(command, env=environment(tmp_path / "none.onnx"), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.onnx: No such file or directory" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_under_load_every_request_is_answered(model, picture, broken, tmp_path):
    pytest.importorskip("uvicorn", reason="needs uvicorn: pip install '.[serve]'")
    if broken:
        Image.new("RGB", (2600, 2600)).save(tmp_path / "large.bmp")  # of more than 20 MB
    command = [ROOT / "scripts/measure/load.py", "--model", model, "--images", tmp_path, "--seconds", 2, "--clients", 4]
    done = subprocess.run([sys.executable, *map(str, command)], env=environment(model), capture_output=True, text=True)
    line = json.loads(done.stdout)
    assert (done.returncode, line["failed"] > 0) == (int(broken), broken), done.stderr
    assert line["requests"] > 4
