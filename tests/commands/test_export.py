"""Exported models: equal to torch, scored without it, and refused when they are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import factors_of, fitted, library_network
from PIL import Image

import padim
from padim import Padim, PadimError
from padim.deploy import export, memory
from padim.deploy.runtime import Runtime
from padim.system.machine import peak_memory_bytes, reset_peak_memory

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_maps_and_scores_are_torchs_for_any_batch(exported, count):
    pixels = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    expected = Padim.load(exported / "model.safetensors").score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = Runtime.load(exported / "model.onnx").score_pixels(pixels)
    np.testing.assert_allclose(found.maps, expected.maps.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.images, expected.images.numpy(), rtol=1e-4)


def test_the_file_carries_what_a_verdict_needs(exported):
    model, runtime = Padim.load(exported / "model.safetensors"), Runtime.load(exported / "model.onnx")
    assert (runtime.config, runtime.provenance.category, runtime.dimensions) == (SMALL, "texture", 20)
    assert runtime.provenance.false_alarm_rate == model.provenance.false_alarm_rate
    assert runtime.calibration.threshold(0.2) == model.calibration.threshold(0.2)
    assert runtime.calibration.pixel_threshold(0.2) == model.calibration.pixel_threshold(0.2)
    (entry,) = onnx.load(exported / "model.onnx").metadata_props
    assert json.loads(entry.value)["about"]["weights_sha256"] == model.provenance.weights_sha256


def test_factors_stay_shared(exported):
    model = Padim.load(exported / "model.safetensors")
    floats = sum(block.numel() for block in factors_of(model.gaussian))
    floats += sum(weight.numel() for weight in model.backbone.weights().values())
    assert (exported / "model.onnx").stat().st_size < 4 * floats + 200_000


@pytest.mark.parametrize("limit", [2**31, 10_000_000], ids=["one file", "two files"])
def test_half_precision_halves_the_bytes_and_costs_digits(exported, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(export, "LARGEST_FILE", limit)
    model = Padim.load(exported / "model.safetensors")
    files, difference, _ = export.export_onnx(model, tmp_path / "model.onnx", "fp16")
    assert {*files} == {*tmp_path.iterdir()}
    assert 1e-6 < difference < export.TOLERANCE
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 0.55 * (exported / "model.onnx").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "layers"),
    {"timm:test_vit": ("blocks.1",), "torchvision:mobilenet_v3_small": ("features.1", "features.3")}.items(),
)
def test_networks_of_libraries_are_exported(backbone, layers, tmp_path):
    config = replace(SMALL, backbone=backbone, layers=layers)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    model = fitted(Padim(config, weights=library_network(backbone).state_dict()), [images[:4]])
    assert export.export_onnx(model, tmp_path / "model.onnx").largest_difference < 1e-4
    found, expected = Runtime.load(tmp_path / "model.onnx").score_pixels(pixels[4:]), model.score(images[4:])
    np.testing.assert_allclose(found.maps, expected.maps.numpy(), rtol=1e-3)


@pytest.mark.slow
def test_what_one_file_cannot_hold_lies_beside_it(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 1_000_000)
    path = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.fp32-0123456789abcdef.data").touch()  # of an export that this one replaces
    model = Padim.load(exported / "model.safetensors")
    assert export.export_onnx(model, path).largest_difference < 1e-5
    (beside,) = tmp_path.glob("model.onnx.*.data")
    assert path.stat().st_size < 1_000_000 < beside.stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    whole, parts = Runtime.load(exported / "model.onnx").score_pixels(pixels), Runtime.load(path).score_pixels(pixels)
    np.testing.assert_array_equal(whole.maps, parts.maps)

    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    for storage in ("fp32", "fp16"):  # one that fails leaves what is there, and nothing else
        with pytest.raises(PadimError, match="not written"):
            export.export_onnx(model, path, storage)
        assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before

    loaded = Runtime.load(path)
    with beside.open("r+b") as file:  # in place
        file.write(bytes(beside.stat().st_size))
    if VERSION >= (1, 24):  # others are bound to the file
        np.testing.assert_array_equal(loaded.score_pixels(pixels).maps, whole.maps)

    beside.unlink()
    with pytest.raises(PadimError, match="damaged"):
        Runtime.load(path)


# All that scoring without torch takes: what pyproject.toml has for it, and what those packages need.
PACKAGES = (
    *("numpy", "PIL", "onnxruntime", "scipy", "matplotlib", "mpl_toolkits", "tqdm"),
    *("coloredlogs", "contourpy", "cycler", "dateutil", "flatbuffers", "fontTools", "google", "humanfriendly"),
    *("kiwisolver", "mpmath", "packaging", "pyparsing", "six.py", "sympy", "typing_extensions.py", "ml_dtypes"),
)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """The interpreter of an environment that has padim and the packages above, and no torch."""
    folder = tmp_path_factory.mktemp("without") / "torch"
    venv.create(folder, with_pip=False, symlinks=True)
    here, there = Path(np.__file__).parents[1], Path(sysconfig.get_path("purelib", vars={"base": folder}))
    for name in PACKAGES:
        for found in (here / name, here / f"{name.lower().replace('pil', 'pillow')}.libs"):
            if found.exists():
                (there / found.name).symlink_to(found)
    (there / "padim.pth").write_text(f"{Path(padim.__file__).parents[1]}\n")
    return folder / "bin/python"


@pytest.mark.slow
def test_predict_needs_no_torch_and_prints_the_same(exported, without_torch, data_root, run, tmp_path):
    has_torch = subprocess.run([without_torch, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in has_torch.stderr
    folder = data_root / "texture/test"
    common = [folder, "--out", tmp_path / "out", "--panel", "--raw", "npy"]
    expected = run("predict", "--model", exported / "model.safetensors", *common)
    command = [without_torch, "-m", "padim.cli.predict", "--model", exported / "model.onnx", *common]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert (found.returncode, found.stderr.startswith("14 images: ")) == (0, True)
    for ours, theirs in zip(found.stdout.splitlines(), expected.out.splitlines(), strict=True):
        line, truth = json.loads(ours), json.loads(theirs)
        assert line["score"] == pytest.approx(truth["score"], rel=1e-4)
        for key in ("path", "verdict", "threshold", "false_alarm_rate", "seen", "heatmap", "panel", "raw"):
            assert line[key] == truth[key]


FIGURES = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap", "image_f1_max", "pixel_f1_max")


@pytest.mark.slow
def test_evaluation_of_an_export_needs_no_torch_and_gives_the_same_figures(exported, without_torch, data_root, run):
    models = ("--model", exported / "model.onnx", "--data", data_root, "--json", "--output", exported / "evaluated")
    command = [without_torch, "-m", "padim.cli.eval", *models]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    expected = run("eval", *models[:1], exported / "model.safetensors", *models[2:])
    figures, truth = json.loads(found.stdout), json.loads(expected.out)
    for key in FIGURES:
        assert figures[key] == pytest.approx(truth[key], abs=1e-4)
    assert figures["threshold"] == truth["threshold"]
    assert json.loads((exported / "evaluated/texture/eval.json").read_text())["image_auroc"] == truth["image_auroc"]


def test_an_exported_graph_is_timed_as_a_whole(exported, data_root, run):
    result = run("predict", "--model", exported / "model.onnx", data_root / "texture/test/stain", "--timing")
    assert list(json.loads(result.out.splitlines()[0])["milliseconds"]) == ["read", "graph", "pictures"]


def test_models_are_evaluated_on_their_own_categories(exported, data_root, run, tmp_path):
    several = (exported / "model.onnx", exported / "model.safetensors")
    where = ("--data", data_root, "--output", tmp_path, "--json")
    both = run("eval", "--model", *several, *where)
    assert [json.loads(line)["category"] for line in both.out.splitlines()] == ["texture", "texture"]
    assert f"texture: the files in {tmp_path / 'texture'} are those of {several[1]} now" in both.err
    other = json.loads(run("eval", "--model", several[0], "--category", "object", *where).out)
    assert (other["category"], other["images"]) == ("object", 14)
    for wrong, message in (
        (("--model", *several, "--category", "object"), "several models are evaluated on their own categories"),
        (("--model", several[0], "--precision", "bf16"), "ONNX Runtime computes in fp32 on cpu"),
        (("--model", tmp_path / "nowhere.onnx"), "nowhere.onnx"),
    ):
        refused = run("eval", *wrong, *where)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err


def test_one_image_of_any_size(exported):
    runtime = Runtime.load(exported / "model.onnx")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    scores = runtime.score_image(image)
    assert scores.maps.shape == (1, 64, 64)
    assert scores.images[0] == scores.maps.max()
    with pytest.raises(PadimError, match=r"shape \[1, 90, 120, 3\], expected \[n, 64, 64, 3\]"):
        runtime.score_pixels(np.asarray(image)[None])


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(PadimError, match=r"ONNX Runtime differs from torch by .*: not written"):
        export.export_onnx(Padim.load(exported / "model.safetensors"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_errors_of_one_line(exported, tmp_path, data):
    content = (exported / "model.onnx").read_bytes()
    kind = data.draw(st.sampled_from(["cut", "noise", "empty"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "noise":
        content = data.draw(st.binary(max_size=200))
    else:
        content = b""
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(PadimError) as raised:
        Runtime.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is not a padim model"),
        ("[]", "metadata can't be understood"),
        ('{"version": 2}', "an export of version 2, this program reads version 1"),
        ('{"version": 1, "calibration": {"scores": [[1]], "pixels": []}}', "metadata can't be understood"),
        ('{"version": 1, "calibration": {"scores": [], "pixels": null}}', "metadata can't be understood"),
        ('{"version": 1, "calibration": {"scores": [NaN], "pixels": null}}', "metadata can't be understood"),
        ('{"version": 1, "calibration": null, "config": []}', "metadata can't be understood"),
        ('{"version": 1, "calibration": null, "about": {"false_alarm_rate": 5}}', "metadata can't be understood"),
        ('{"version": 1, "calibration": null, "about": {"false_alarm_rate": NaN}}', "metadata can't be understood"),
        (
            '{"version": 1, "calibration": null, "about": {"false_alarm_rate": 0.1, "category": ""}, "config": {},'
            ' "dimensions": Infinity}',
            "metadata can't be understood",
        ),
        (
            '{"version": 1, "calibration": null, "about": {"false_alarm_rate": 0.1, "category": ""}, "config": {},'
            ' "dimensions": 20}',
            "metadata can't be understood",  # the graph takes other images
        ),
        (
            '{"version": 1, "calibration": null, "about": {"false_alarm_rate": 0.1}, "config": {"sed": 1}}',
            "'sed' is not a field",
        ),
    ],
)
def test_other_metadata_is_refused(exported, tmp_path, header, message):
    model = onnx.load(exported / "model.onnx")
    onnx.helper.set_model_props(model, {} if header is None else {"padim": header})
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(PadimError, match=message) as raised:
        Runtime.load(tmp_path / "other.onnx")
    assert str(raised.value).startswith(f"{tmp_path / 'other.onnx'} is ")


def test_what_is_missing_is_named(run, tmp_path):
    result = run("predict", "--model", tmp_path / "nowhere.onnx", tmp_path, "--out", tmp_path / "out")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def with_node(model, node):
    model.graph.node.insert(0, node)
    return model


def endless(model):
    """A loop that never ends, whose result is an output."""
    tensor = onnx.helper.make_tensor_value_info
    go = onnx.helper.make_node("Identity", ["go_on"], ["still"])
    body = onnx.helper.make_graph([go], "body", [tensor("i", 7, []), tensor("go_on", 9, [])], [tensor("still", 9, [])])
    always = onnx.helper.make_tensor("always", 9, [], [True])
    model.graph.initializer.append(always)
    return with_node(model, onnx.helper.make_node("Loop", ["", "always"], [], body=body))


def with_a_function(model):
    body = onnx.helper.make_node("Identity", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("mine", "twice", ["x"], ["y"], [body], opset))
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (endless, "its operator Loop has a graph inside"),
        (with_a_function, "it has functions of its own"),
        (
            lambda model: with_node(model, onnx.helper.make_node("Run", ["images"], ["x"], domain="com.other")),
            "its operator Run is of com.other",
        ),
    ],
    ids=["a loop", "a function", "an operator of others"],
)
def test_graphs_that_no_export_has_are_not_loaded(change, reason, exported, tmp_path):
    onnx.save(change(onnx.load(exported / "model.onnx")), tmp_path / "other.onnx")
    with pytest.raises(PadimError, match=rf"other.onnx is not what padim-export writes: {reason}"):
        Runtime.load(tmp_path / "other.onnx")


def test_a_file_of_countless_fields_is_given_up(tmp_path):
    (tmp_path / "many.onnx").write_bytes(b"\x08\x01" * 1_500_000)
    with pytest.raises(PadimError, match="is damaged, not an ONNX model"):
        Runtime.load(tmp_path / "many.onnx")


def asking(model, count, constant):
    """A model that also computes 100 million bytes, so many times: from constants alone, or from the images as well."""
    tensors = [onnx.numpy_helper.from_array(np.array([25_000_000]), "shape")]
    nodes = [onnx.helper.make_node("Shape", ["images"], ["sizes"])]
    nodes.append(onnx.helper.make_node("ReduceMax", ["sizes"], ["side"], keepdims=0))
    nodes.append(onnx.helper.make_node("Cast", ["side"], ["of images"], to=1))
    for number in range(count):
        tensors.append(onnx.numpy_helper.from_array(np.float32(number), f"value {number}"))
        value = f"value {number}" if constant else f"sum {number}"
        nodes.append(onnx.helper.make_node("Add", [f"value {number}", "of images"], [f"sum {number}"]))
        nodes.append(onnx.helper.make_node("Expand", [value, "shape"], [f"large {number}"]))
        nodes.append(onnx.helper.make_node("Add", [f"large {number}", f"sum {number}"], [f"larger {number}"]))
    nodes.append(onnx.helper.make_node("Max", [f"larger {number}" for number in range(count)], ["huge"]))
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
    model.graph.output.append(onnx.helper.make_tensor_value_info("huge", 1, [25_000_000]))
    return model


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds it")
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_constants_that_would_fill_the_memory_do_not(device, exported, tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(memory, "ANY_SIZE", 2 * 10**8)
    monkeypatch.setattr(memory, "cores", lambda: 1)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    onnx.save(asking(onnx.load(exported / "model.onnx"), 25, constant=True), tmp_path / "large.onnx")
    reset_peak_memory()
    start = peak_memory_bytes()
    with suppress(PadimError):  # or ONNX Runtime leaves the constants that are too large for later
        Runtime.load(tmp_path / "large.onnx", device=device)
    assert peak_memory_bytes() - start < 10**9
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(VERSION < (1, 23), reason="ONNX Runtime keeps to the first limit")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_the_bound_of_a_load_never_lifts_a_users_own_and_goes_afterwards(tmp_path):
    import resource

    model = tmp_path / "m[1].onnx"
    for path in (model, tmp_path / "m[1].onnx.0.data", tmp_path / "m1.onnx.0.data"):
        path.write_bytes(b"1")
    assert memory.files_beside(model) == [tmp_path / "m[1].onnx.0.data"]
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.bounded_loading(model):
        bound = resource.getrlimit(resource.RLIMIT_DATA)[0]
    assert bound > 0
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (bound - 2**29, before[1]))
        with memory.bounded_loading(model):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == bound - 2**29
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_a_graph_that_fills_the_memory_scores_nothing(exported, tmp_path, monkeypatch):
    pixels = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    onnx.save(asking(onnx.load(exported / "model.onnx"), 4, constant=False), tmp_path / "large.onnx")
    unbounded = Runtime.load(tmp_path / "large.onnx")
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 3 * 10**8)
    bounded = Runtime.load(tmp_path / "large.onnx")
    assert len(unbounded.score_pixels(pixels).images) == 1
    with pytest.raises(PadimError, match="can't score these images: they take more memory than is free"):
        bounded.score_pixels(pixels)
    assert len(Runtime.load(exported / "model.onnx").score_pixels(pixels).images) == 1
