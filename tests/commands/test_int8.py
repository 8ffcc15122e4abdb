"""Exports whose network computes in int8: fitted anew, and refused where scores no longer rank alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SMALL
from oracles import fitted
from PIL import Image

from padim import CutPaste, CutPasteConfig, Padim, PadimError, Runtime
from padim.deploy.export import export_onnx
from padim.detectors.batches import as_pixels

pytestmark = pytest.mark.slow


def parts(count, seed, noise=(4, 16)):
    """Images of one part, some of them noisier than others, `[n, 64, 64, 3]`."""
    draw = np.random.default_rng(seed)
    part = np.random.default_rng(0).integers(60, 196, (64, 64, 3))
    spread = draw.standard_normal((count, 64, 64, 3)) * draw.uniform(*noise, (count, 1, 1, 1))
    return (part + spread).round().clip(0, 255).astype(np.uint8)


def as_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 normal images."""
    folder = tmp_path_factory.mktemp("parts") / "good"
    folder.mkdir()
    for number, pixels in enumerate(parts(24, 1)):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder, weights_file):
    """The model of these images, and where its file is."""
    path = folder.parent / "model.safetensors"
    detector = fitted(Padim(SMALL, weights=weights_file), as_images(parts(24, 1)).split(8))
    detector.save(path)
    return detector, path


@pytest.fixture
def export(model, folder, tmp_path, run):
    """Export the model in int8, of the images in a folder."""

    def call(images=folder, *options):
        where = ("--model", model[1], "--images", images, "--out", tmp_path / "out/int8.onnx")
        return run("export", *where, "--storage", "int8", *options)

    return call


@pytest.fixture(scope="module")
def int8(model, folder):
    """The exported file, and what was said of it."""
    path = folder.parent / "int8.onnx"
    return path, export_onnx(model[0], path, "int8", as_images(parts(24, 1)).split(8))


def test_it_scores_other_images_nearly_as_the_model_does(model, int8):
    detector, runtime = model[0], Runtime.load(int8[0])
    for pixels in (parts(20, 2), parts(20, 3) // 2):  # normal ones, and dark ones
        expected, found = detector.score(as_images(pixels)).images.numpy(), runtime.score_pixels(pixels).images
        assert 0 < np.abs(found / expected - 1).max() < 0.2
    assert runtime.provenance == detector.provenance


def test_the_gaussians_are_those_of_the_features_in_int8(int8, tmp_path):
    graph = onnx.load(int8[0])
    (root,) = [node for node in graph.graph.node if node.op_type == "Sqrt"]
    names = ["features_0", "features_1", "features_2", root.input[0]]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(graph, tmp_path / "inside.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "inside.onnx")

    def inside(pixels):
        *levels, squared = session.run(names, {"images": pixels.transpose(0, 3, 1, 2)})
        cells = len(squared)
        embedding = np.concatenate([level.repeat(cells // len(level), axis=0) for level in levels], axis=1)
        return embedding.astype(np.float64), squared

    known, unknown = inside(parts(24, 1))[0], inside(parts(5, 2))
    found = np.empty_like(unknown[1])
    for cell, (train, test) in enumerate(zip(known, unknown[0])):
        inverse = np.linalg.inv(np.cov(train) + SMALL.epsilon * np.eye(len(train)))
        centred = test - train.mean(axis=1, keepdims=True)
        found[cell] = np.einsum("dn,de,en->n", centred, inverse, centred)
    np.testing.assert_allclose(unknown[1], found, rtol=1e-3)


def test_the_convolutions_are_in_int8(int8, model):
    graph = onnx.load(int8[0]).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(part, torch.nn.Conv2d) for part in model[0].backbone.modules())
    for node in convolutions:
        pixels, weights = (makers[name] for name in node.input[:2])
        assert (pixels.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        stored, scales = (tensors[name] for name in weights.input[:2])
        assert (stored.dtype, len(scales)) == (np.int8, len(stored))  # per channel
        assert np.abs(stored).max() <= 64  # in 7 bits
    assert int8[0].stat().st_size < 0.6 * model[1].stat().st_size


def test_the_agreement_is_that_of_leave_one_out_scores(int8, model):
    exact, rounded, agreement = model[0].calibration.scores, Runtime.load(int8[0]).calibration.scores, int8[1].agreement
    assert (agreement.images, len(rounded)) == (24, 24)
    assert 0.9 <= agreement.correlation < 1
    # Scores that each change by at most so much do so in their order, too.
    assert 0 < np.abs(rounded / exact - 1).max() <= agreement.largest_change + 1e-6
    assert agreement.same_verdicts == 1


def test_openvino_computes_it_too(int8):
    pytest.importorskip("openvino")
    pixels = parts(5, 2)
    expected = Runtime.load(int8[0]).score_pixels(pixels).images
    found = Runtime.load(int8[0], engine="openvino").score_pixels(pixels).images
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_fewer_images_than_the_model_has_seen_are_remarked(export, folder, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)
    for number in range(4):
        (fewer / f"{number:02d}.png").unlink()
    result = export(fewer)
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert (figures["images"], Runtime.load(figures["model"]).provenance.images) == (20, 20)
    assert figures["bytes"] == (tmp_path / "out/int8.onnx").stat().st_size
    assert {"correlation", "largest_change", "same_verdicts", "largest_difference"} < figures.keys()
    assert "fitted to 20 images, those of the model to 24" in result.err

    (fewer / "10.png").unlink()
    refused = export(fewer)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.splitlines()[-1].endswith("int8 takes at least 20 normal images, there are 19")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["int8.onnx"]


def test_scores_that_no_longer_rank_alike_are_refused(random_weights, tmp_path):
    images = as_images(parts(24, 1, noise=(0.2, 0.4)))  # which differ by less than int8 can tell apart
    model = fitted(Padim(SMALL, weights=random_weights), images.split(8))
    with pytest.raises(PadimError, match=r"rank correlation .* below 0.9: not written"):
        export_onnx(model, tmp_path / "int8.onnx", "int8", images.split(8))
    assert list(tmp_path.iterdir()) == []


TILES = {"resize": (64, 96), "crop": (64, 96), "tile": (64, 64), "tile_overlap": 32}


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [(TILES, False), (TILES | {"tile_model": "position"}, False), ({}, True)],
    ids=["tiles", "tiles with models of their own", "ignored pixels"],
)
def test_tiles_and_ignored_pixels(changes, ignored, random_weights, tmp_path):
    config = replace(SMALL, **changes)
    height, width = config.image_size
    images = as_images(np.concatenate([parts(24, 1)] * 2, axis=2)[:, :height, :width])
    model = Padim(config, weights=random_weights)
    mask = np.zeros((height, width), dtype=bool)
    if ignored:
        mask[:20, :30] = True
        model.ignore(mask)
    model = fitted(model, images.split(8))
    assert export_onnx(model, tmp_path / "int8.onnx", "int8", images.split(8)).largest_difference < 1e-4
    maps = Runtime.load(tmp_path / "int8.onnx").score_pixels(as_pixels(images[:3])).maps
    np.testing.assert_array_equal(np.isnan(maps), np.broadcast_to(mask, maps.shape))


def test_what_int8_is_not_for_is_said_in_one_line(folder, model, run, tmp_path, random_weights):
    for options in (("--storage", "int8"), ("--images", folder), ("--storage", "fp16", "--images", folder)):
        result = run("export", "--model", model[1], *options)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert "--storage int8 and --images DIR go together" in result.err
    result = run("export", "--model", model[1], "--storage", "int8", "--images", tmp_path / "nowhere")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    other = CutPaste(CutPasteConfig(steps=1, resize=(64, 64)), weights=random_weights)
    with pytest.raises(PadimError, match="--storage int8 is for PaDiM"):
        export_onnx(other, tmp_path / "int8.onnx", "int8", [])
