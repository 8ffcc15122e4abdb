"""Parts in any pose through the commands: train, evaluate, predict, watch, export, update, check and reproduce."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from processes import ranks

from padim import Config, Padim
from padim.config import preset_path
from padim.data.synth import synthesize, write_category
from padim.detectors.registry import read_config

PROTOCOL = ("--size", 64, "--channels", 20, "--batch-size", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posed")
    for _ in write_category(folder / "plate", "plate", 64, 64, 16, 4, 2, seed=3, align="rotate"):
        pass
    return folder


@pytest.fixture(scope="module")
def runs(root, weights_file, tmp_path_factory):
    """A folder with an aligned model that can be updated."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("runs")
    arguments = ["--data", root, "--weights", weights_file, "--output", output, *PROTOCOL, "--keep-moments"]
    assert main(["--category", "plate", "--align", "rotate", *map(str, arguments)]) == 0
    return output


def test_train_says_how_the_parts_lie(root, weights_file, run, tmp_path):
    where = ("--data", root, "--weights", weights_file, "--output", tmp_path)
    result = run("train", "--category", "plate", "--align", "auto", *where, *PROTOCOL)
    assert result.code == 0
    assert "plate: nine of ten of these parts lie turned by up to" in result.err
    assert "--align rotate" in result.err
    assert " degrees and shifted by up to " in result.out
    summary = json.loads((tmp_path / "plate/train.json").read_text())
    assert summary["config"]["align"] == "rotate"
    low, high = summary["poses"]["angle"]
    assert -180 <= low < -90 < 90 < high <= 180
    assert 0.3 < summary["poses"]["field"] < 1
    assert summary["poses"]["least_correlation"] < summary["poses"]["correlation"] <= 1


def test_auto_leaves_parts_alone_that_lie_alike(data_root, weights_file, run, tmp_path):
    where = ("--data", data_root, "--weights", weights_file, "--output", tmp_path)
    result = run("train", "--category", "texture", "object", "--align", "auto", *where, *PROTOCOL)
    assert result.code == 0
    assert result.err.count("would not pay") == 2
    for name in ("texture", "object"):
        summary = json.loads((tmp_path / name / "train.json").read_text())
        assert (summary["config"]["align"], summary["poses"]) == ("none", None)


def test_eval_and_report_follow_the_model(runs, root, run):
    result = run("eval", "--data", root, "--output", runs, "--report", "--json")
    assert result.code == 0
    summary = json.loads(result.out)
    assert summary["pixel_auroc"] is not None
    assert summary["poses_not_found"] == 0
    scores = json.loads((runs / "plate/eval.json").read_text())["scores"]
    assert all(set(line["pose"]) == {"angle", "shift", "correlation", "found"} for line in scores)
    page = (runs / "plate/report.html").read_text()
    assert "grey is what is ignored or was not seen" in page
    assert page.count(" degrees, correlation ") == len(scores)


def test_predict_gives_poses_in_pixels_of_the_image(runs, root, run, tmp_path):
    """The same image at twice its size has twice the shift, and raw maps have NaN where nothing was seen."""
    path = root / "plate/test/stain/000.png"
    Image.open(path).resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    model = runs / "plate/model.safetensors"
    pictures = ("--out", tmp_path / "out", "--panel", "--raw", "npy")
    result = run("predict", "--model", model, path, tmp_path / "large.png", *pictures)
    assert result.code == 0
    small, large = map(json.loads, result.out.splitlines())
    assert small["pose"]["found"] is True
    assert large["pose"]["angle"] == pytest.approx(small["pose"]["angle"], abs=1)
    np.testing.assert_allclose(large["pose"]["shift"], 2 * np.array(small["pose"]["shift"]), atol=1)
    anomaly_map = np.load(small["raw"])
    assert 0.1 < np.isnan(anomaly_map).mean() < 0.8
    heatmap = np.asarray(Image.open(small["heatmap"]).convert("RGB")).astype(int)
    unseen = heatmap[np.isnan(anomaly_map)]
    original = np.asarray(Image.open(path)).astype(int)[np.isnan(anomaly_map)]
    blended = np.abs(unseen - (original + 160) // 2).max(axis=1)
    assert np.mean(blended <= 2) > 0.8  # but for the colour bar
    assert Path(small["panel"]).is_file()


def test_an_image_without_the_part_is_anomalous_for_that(runs, run, tmp_path):
    rest = synthesize("plate", 64, 64, "good", (1,))[0][:8]
    Image.fromarray(np.tile(rest, (8, 1, 1))).save(tmp_path / "empty.png")
    model = runs / "plate/model.safetensors"
    result = run("predict", "--model", model, tmp_path / "empty.png", "--threshold", 1e9)
    line = json.loads(result.out)
    assert (line["verdict"], line["pose"]["found"]) == ("anomalous", False)
    assert line["score"] < line["threshold"]


def test_an_update_keeps_the_reference(runs, root, run, tmp_path):
    model = runs / "plate/model.safetensors"
    arguments = ("--update", model, "--normal", root / "plate/test/good", "--output", tmp_path)
    assert run("train", *arguments).code == 0
    before, after = Padim.load(model), Padim.load(tmp_path / "plate/model.safetensors")
    np.testing.assert_array_equal(after.alignment.reference, before.alignment.reference)
    assert after.provenance.images == 20
    refused = run("train", *arguments, "--align", "none")
    assert refused.code == 2
    assert "--update keeps the configuration" in refused.err


# Scores an exported model's images where torch can't be imported.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from padim.cli.predict import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_exported_model_is_aligned_without_torch(runs, root, run, tmp_path):
    model = runs / "plate/model.safetensors"
    exported = run("export", "--model", model, "--out", tmp_path / "plate.onnx")
    assert json.loads(exported.out)["largest_difference"] < 1e-3
    images = root / "plate/test/stain"
    expected = [json.loads(line) for line in run("predict", "--model", model, images).out.splitlines()]
    command = [sys.executable, "-c", WITHOUT_TORCH, "--model", tmp_path / "plate.onnx", images]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, other in zip(map(json.loads, process.stdout.splitlines()), expected):
        assert line["pose"] == other["pose"]
        assert line["score"] == pytest.approx(other["score"], rel=1e-3)
        assert line["verdict"] == other["verdict"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_one_frame(processes, root, weights_file, tmp_path):
    """The reference is that of the first one's images; all poses and the whole coverage are in the model."""
    where = ["--data", root, "--weights", weights_file, "--output", tmp_path, "--device", "cpu", "--json"]
    code, out, err = ranks(processes, "--category", "plate", "--align", "rotate", *PROTOCOL, *where, "--eval")
    assert code == 0, err
    summary, figures = map(json.loads, out.splitlines())
    assert summary["images"] == 16
    assert figures["poses_not_found"] == 0
    alignment = Padim.load(tmp_path / "plate/model.safetensors").alignment
    assert alignment.correlations.shape == (16,)
    assert alignment.correlations.min() > 0.7
    assert 0.3 < alignment.field.mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("broken", [[], [0]], ids=["a rank without images", "a first rank with a broken one"])
def test_ranks_without_an_image_take_part(broken, root, weights_file, tmp_path):
    normal = tmp_path / "normal"
    normal.mkdir()
    for number, path in enumerate(sorted((root / "plate/train/good").iterdir())[:3]):
        (normal / path.name).write_bytes(b"" if number in broken else path.read_bytes())
    where = ["--normal", normal, "--weights", weights_file, "--output", tmp_path, "--device", "cpu", "--json"]
    code, out, err = ranks(4, "--align", "rotate", *PROTOCOL, *where)
    assert code == 0, err
    assert json.loads(out)["images"] == 3 - len(broken)
    assert np.abs(Padim.load(tmp_path / "normal/model.safetensors").alignment.reference).max() > 0


def test_images_that_a_resize_would_bend_are_refused_with_a_size_that_fits(run, weights_file, tmp_path):
    for _ in write_category(tmp_path / "plate", "plate", 96, 128, 4, 1, 1, seed=0, align="rotate"):
        pass
    where = ("--data", tmp_path, "--category", "plate", "--weights", weights_file, "--output", tmp_path / "runs")
    result = run("train", *where, "--align", "rotate", *PROTOCOL)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.err.strip().endswith("pass --size 224 304")
    assert run("train", *where, "--align", "rotate", "--size", 96, 128, "--channels", 20).code == 0
    assert run("train", *where, "--align", "shift", *PROTOCOL).code == 0  # which bends nothing


def test_check_mentions_poses_that_spread(root, run):
    result = run("data", "check", root)
    assert result.code == 0
    assert "plate: nine of ten of these parts lie turned by up to" in result.out
    assert result.out.strip().endswith("--align rotate")
    assert json.loads(run("data", "check", root, "--json").out)["advice"].endswith("--align rotate")


def test_synth_writes_the_poses(run, tmp_path):
    small = ("--size", 48, "--train", 3, "--good", 1, "--defective", 1)
    assert run("synth", tmp_path, "--kind", "plate", "--pose", "rotate", *small).code == 0
    poses = json.loads((tmp_path / "plate/poses.json").read_text())
    assert len(poses) == 3 + 1 + 5
    assert all((tmp_path / "plate" / name).is_file() for name in poses)
    assert max(abs(pose["angle"]) for pose in poses.values()) > 30
    assert run("synth", tmp_path, "--kind", "plate", "--category", "still", *small).code == 0
    assert not (tmp_path / "still/poses.json").exists()
    refused = run("synth", tmp_path, "--pose", "shift", *small)
    assert refused.code == 2
    assert "--kind plate" in refused.err


@pytest.mark.slow
def test_the_ablation_has_both_sides(root, weights_file, run, tmp_path, monkeypatch):
    small = dataclasses.replace(SMALL, resize=(72,), crop=(64,))
    from padim.reproduction import experiments

    preset, mine = experiments.preset, experiments.Experiment("pytorch-r18", small)
    monkeypatch.setattr(experiments, "preset", lambda name: mine if name == mine.name else preset(name))
    where = ("--data", root, "--weights", weights_file, "--output", tmp_path, "--jobs", 1)
    result = run("reproduce", "--ablation", "align", "--seeds", 2, "--json", *where)
    assert result.code == 0
    names = [json.loads(line)["experiment"] for line in result.out.splitlines()]
    assert names == ["align-none", "align-rotate"]
    for name in names:
        assert len(list((tmp_path / name).glob("plate-*.json"))) == 2


def test_the_presets_align_whole_images():
    for name in ("aligned-r18", "aligned-wr50"):
        config = read_config(preset_path(name))
        assert isinstance(config, Config)
        assert (config.align, config.resize, config.crop) == ("rotate", (256, 256), ())
