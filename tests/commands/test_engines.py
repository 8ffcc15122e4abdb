"""Engines and devices for exported models: equal to torch where they are installed, one line where they are not."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from padim import Padim, PadimError, Runtime


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


def pixels_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_engine_gives_torchs_maps_and_scores(exported, engine, count):
    pixels = pixels_of(count)
    expected = Padim.load(exported / "model.safetensors").score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = Runtime.load(exported / "model.onnx", engine=engine).score_pixels(pixels)
    np.testing.assert_allclose(found.maps, expected.maps.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.images, expected.images.numpy(), rtol=1e-4)


def test_each_engine_gives_torchs_verdicts(exported, engine, data_root, run):
    images = data_root / "texture/test"
    expected = run("predict", "--model", exported / "model.safetensors", images)
    found = run("predict", "--model", exported / "model.onnx", "--engine", engine, "--device", "cpu", images)
    assert (found.code, len(found.out.splitlines())) == (0, 14)
    for ours, theirs in zip(found.out.splitlines(), expected.out.splitlines()):
        line, truth = json.loads(ours), json.loads(theirs)
        assert line["score"] == pytest.approx(truth["score"], rel=1e-4)
        assert all(line[key] == truth[key] for key in ("path", "verdict", "threshold"))


def test_each_engine_scores_in_several_threads(exported, engine):
    runtime = Runtime.load(exported / "model.onnx", engine=engine)
    batches = [pixels_of(3, seed) for seed in range(8)]
    expected = [runtime.score_pixels(batch).maps for batch in batches]
    found = [None] * len(batches)

    def score(number):
        found[number] = runtime.score_pixels(batches[number]).maps

    threads = [threading.Thread(target=score, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_engine_refuses_other_files_in_one_line(exported, engine, tmp_path):
    whole, path = (exported / "model.onnx").read_bytes(), tmp_path / "other.onnx"
    bare = onnx.load(exported / "model.onnx")
    onnx.helper.set_model_props(bare, {})
    for content, message in (
        (whole[: len(whole) // 2], "damaged"),
        (b"noise", "damaged"),
        (b"", "damaged|is not a padim model"),
        (bare.SerializeToString(), "is not a padim model"),
    ):
        path.write_bytes(content)
        with pytest.raises(PadimError, match=message) as raised:
            Runtime.load(path, engine=engine)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(PadimError, match="can't read the model"):
        Runtime.load(tmp_path / "nowhere.onnx", engine=engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "the installed ONNX Runtime has no device 'cuda': it has cpu"),
        (("--device", "cpu:x"), "the installed ONNX Runtime has no device 'cpu:x'"),
        (("--precision", "bf16"), "ONNX Runtime computes in fp32 on cpu"),
        (("--weights", "weights.pth"), "--weights is for models of padim-train"),
    ],
)
def test_what_is_not_to_be_had_is_named(exported, options, message, data_root, run):
    if options[1] == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    result = run("predict", "--model", exported / "model.onnx", data_root / "texture/test", *options)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_an_engine_leaves_the_cores_to_others_between_images(exported, engine):
    runtime = Runtime.load(exported / "model.onnx", engine=engine, threads=4)
    pixels, busy = pixels_of(2), 0.0
    for _ in range(10):
        runtime.score_pixels(pixels)
        begin = time.process_time()
        time.sleep(0.02)
        busy += time.process_time() - begin
    assert busy < 0.05  # seconds of processors, of 0.2 on each


def test_an_engine_is_for_exported_models(exported, run):
    result = run("eval", "--model", exported / "model.safetensors", "--engine", "onnxruntime")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--engine is for exported models" in result.err


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_that_is_not_installed_is_named(exported, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PadimError, match=rf"pip install {name} \(import of {name} halted"):
        Runtime.load(exported / "model.onnx", engine=name)


def test_openvino_names_its_devices_and_precisions(exported):
    openvino = pytest.importorskip("openvino")
    if "NPU" not in openvino.Core().available_devices:
        with pytest.raises(PadimError, match="OpenVINO finds no device 'npu' here: it has cpu"):
            Runtime.load(exported / "model.onnx", engine="openvino", device="npu")
    with pytest.raises(PadimError, match="OpenVINO computes in fp32, bf16, fp16, not in tf32"):
        Runtime.load(exported / "model.onnx", engine="openvino", precision="tf32")


def test_openvino_computes_in_bf16_only_when_asked(exported):
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("the processor has no bfloat16")
    pixels = pixels_of(2)
    exact = Runtime.load(exported / "model.onnx").score_pixels(pixels).maps
    found = Runtime.load(exported / "model.onnx", engine="openvino", precision="bf16").score_pixels(pixels).maps
    assert 1e-4 < np.abs(found / exact - 1).max() < 0.1


@pytest.fixture
def gpu(monkeypatch):
    """An ONNX Runtime that has a GPU, and notes what it is asked for; its driver may be missing."""
    asked = SimpleNamespace(providers=None, starts=True)
    real = onnxruntime.InferenceSession

    def session(path, options, providers, **others):
        asked.providers = providers
        opened = real(path, options, providers=providers[-1:], **others)
        if asked.starts:
            monkeypatch.setattr(opened, "get_providers", lambda: [name for name, _ in providers[:1]])
        return opened

    cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: cuda)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return asked


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1")])
def test_cuda_rounds_to_tf32_only_when_asked(exported, gpu, precision, tf32):
    Runtime.load(exported / "model.onnx", device="cuda:1", precision=precision)
    assert gpu.providers == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": tf32}), "CPUExecutionProvider"]


def test_a_gpu_that_does_not_start_is_an_error_rather_than_the_cpu(exported, gpu):
    gpu.starts = False
    with pytest.raises(PadimError, match="ONNX Runtime can't start cuda here"):
        Runtime.load(exported / "model.onnx", device="cuda")
