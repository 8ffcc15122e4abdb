"""The second detector through the same commands: train, stop, resume, evaluate, report, export, predict."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib

import pytest
import torch
from oracles import LIMIT, until
from PIL import Image

from padim import CutPaste
from padim.cli import command
from padim.system.progress import Lines

FEW = [
    *("--method", "cutpaste", "--resize", 32, 32, "--training-batch", 4, "--steps", 4, "--frozen-steps", 1),
    *("--scar-width", 2, 3, "--scar-height", 4, 8, "--category", "texture"),
]


@pytest.fixture(scope="module")
def trained(data_root, weights_file, tmp_path_factory):
    """A folder with a model of the category texture."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("cutpaste")
    arguments = [*FEW, "--data", data_root, "--weights", weights_file, "--output", output]
    assert main([*map(str, [*arguments, "--resize", 96, 96, "--sspcab", "before-layer4"])]) == 0
    return output / "texture"


def test_training_leaves_a_log_a_figure_and_a_summary(trained):
    with (trained / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["loss"]) > float(row["sspcab_error"]) * 0.01 > 0 for row in rows)
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    with Image.open(trained / "training.png") as figure:
        assert figure.size[0] > 100
    summary = json.loads((trained / "train.json").read_text())
    assert (summary["step"], summary["images"], summary["config"]["method"]) == (4, 8, "cutpaste")
    assert summary["pixel_threshold"] is None


def test_evaluation_has_image_figures_and_embeddings(trained, data_root, run):
    common = ["--data", data_root, "--output", trained.parent]
    result = run("eval", *common, "--json", "--report")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    assert 0 <= figures["image_auroc"] <= 1
    assert figures["pixel_auroc"] is None
    assert figures["image_youden_threshold"] is not None
    assert figures["remark"] is None
    page = (trained / "report.html").read_text()
    assert "training (8)" in page  # the legend of the t-SNE
    assert "largest F1 on these images" in page
    assert "Heatmaps" not in page
    assert (trained / "report/embeddings.png").is_file()
    table = run("eval", *common).out.splitlines()
    assert table[1].split()[:4] == ["texture", str(figures["images"]), f"{figures['image_auroc']:.4f}", "-"]


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_exported_scores_are_torchs(trained, data_root, run, tmp_path, storage, tolerance):
    path = tmp_path / "model.onnx"
    result = run("export", "--model", trained / "model.safetensors", "--out", path, "--storage", storage)
    assert result.code == 0, result.err
    assert json.loads(result.out)["largest_difference"] < 1e-3
    folder = data_root / "texture/test"
    ours, theirs = (run("predict", "--model", model, folder) for model in (path, trained / "model.safetensors"))
    assert ours.code == theirs.code == 0
    for line, truth in zip(map(json.loads, ours.out.splitlines()), map(json.loads, theirs.out.splitlines())):
        assert line.pop("score") == pytest.approx(truth.pop("score"), rel=tolerance)
        assert line["verdict"] in ("normal", "anomalous")
        assert {**line, "verdict": None} == {**truth, "verdict": None}


def test_a_detector_without_maps_draws_none(trained, data_root, run, tmp_path):
    result = run("predict", "--model", trained / "model.safetensors", data_root / "texture", "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert "has no maps to draw: omit --out" in result.err


def test_augmentations_are_shown(data_root, run, tmp_path):
    result = run("train", *FEW, "--data", data_root, "--output", tmp_path, "--show-augmentations", 3)
    assert (result.code, result.out) == (0, f"{tmp_path / 'texture/augmentations.png'}\n")
    with Image.open(tmp_path / "texture/augmentations.png") as sheet:
        assert sheet.size == (3 * 32, 14 + 3 * 32)
    padim = run("train", "--category", "texture", "--data", data_root, "--show-augmentations", 3)
    assert padim.code == 2
    assert "--show-augmentations is an option of the method cutpaste, and this is padim" in padim.err


def test_the_step_that_is_best_on_the_test_images_is_said_to_be(data_root, weights_file, run, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path, "--json"]
    choice = ["--select", "best-on-test", "--test-steps", 2]
    result = run("train", *FEW, *where, *choice, "--eval")
    assert result.code == 0, result.err
    summary, figures = map(json.loads, result.out.splitlines())
    assert summary["step"] in (2, 4)
    assert figures["image_auroc"] == pytest.approx(summary["best_test_auroc"])
    assert "have seen the answers" in figures["remark"]
    assert "have seen the answers" in result.err
    result = run("train", *FEW, *where, *choice)
    assert (result.code, "pass --eval" in result.err) == (2, True)


def test_a_log_file_can_be_followed(data_root, weights_file, run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Lines", lambda write: Lines(write, itertools.count(step=31).__next__))
    where = ["--data", data_root, "--weights", weights_file, "--output", tmp_path]
    result = run("train", *FEW, *where, "--optimizer", "adam", "--learning-rate", 0.001)
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    assert "texture: 1 of 8 images, 31.0 s/image, 0:03:37 left" in lines
    images, steps = ([line for line in lines if f"s/{unit}, " in line] for unit in ("image", "step"))
    assert (len(images), len(steps)) == (8, 4)
    assert re.fullmatch(
        r"texture: 2 of 4 steps, loss \S+, accuracy \S+, learning rate \S+, data seconds \S+, compute seconds \S+,"
        r" 31\.0 s/step, 0:01:02 left",
        steps[1],
    )
    with (tmp_path / "texture/training.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["step"] == "2")
    assert f"loss {float(row['loss']):.3g}, " in steps[1]
    assert json.loads((tmp_path / "texture/train.json").read_text())["config"]["optimizer"] == "adam"


@pytest.mark.slow
def test_a_finished_model_is_lengthened(data_root, weights_file, run, tmp_path):
    where = ["--data", data_root, "--weights", weights_file]
    assert run("train", *FEW, *where, "--output", tmp_path / "whole").code == 0
    parts = [*where, "--output", tmp_path / "parts"]
    for options in (["--steps", 2], ["--resume"]):
        result = run("train", *FEW, *parts, *options)
        assert (result.code, "never trained in bn1, layer1, layer2, layer3, layer4" in result.err) == (0, True)
    models = [(tmp_path / name / "texture/model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]
    shorter = run("train", *FEW, *parts, "--steps", 3, "--resume")
    assert (shorter.code, shorter.out, shorter.err.count("ERROR")) == (2, "", 1)
    assert "has made 4 steps already, more than --steps 3: train without --resume" in shorter.err


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(data_root, weights_file, run, tmp_path):
    where = ["--data", data_root, "--weights", weights_file]
    many = [*FEW, "--steps", 20, *where]
    assert run("train", *many, "--output", tmp_path / "whole").code == 0
    parts = [*many, "--output", tmp_path / "parts"]
    arguments = [sys.executable, "-m", "padim.cli.train", *map(str, parts), "--checkpoint-steps", "1"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "parts/texture/checkpoint.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (out, err.splitlines()[-1]) == ("", "interrupted")
    assert process.returncode == 130
    assert not (tmp_path / "parts/texture/model.safetensors").exists()
    result = run("train", *parts, "--resume")
    assert result.code == 0, result.err
    models = [(tmp_path / name / "texture/model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels", 5], "--channels is an option of the method padim, and this is cutpaste"),
        (["--preset", "pytorch-r18"], "is a configuration of padim"),
        (["--no-embed-backbone"], "its weights are nowhere else"),
        (["--seed", -1], "seed: -1 is out of range"),
        (["--training-batch", 1], "training_batch: 1 is out of range"),
        (["--scar-width", 5, 2], "scar_width: (5.0, 2.0) is out of range"),
    ],
)
def test_wrong_options_are_one_line(data_root, weights_file, run, tmp_path, options, message):
    result = run("train", *FEW, "--data", data_root, "--weights", weights_file, "--output", tmp_path, *options)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert not any(tmp_path.iterdir())  # said before the training, not after it


def test_padim_has_nothing_to_resume(data_root, weights_file, run, tmp_path):
    where = ["--category", "texture", "--data", data_root, "--weights", weights_file, "--output", tmp_path]
    result = run("train", *where, "--resize", 64, "--crop", 64, "--resume")
    assert (result.code, "--resume: padim fits in one pass: there is nothing to resume" in result.err) == (2, True)


@pytest.mark.parametrize("preset", ["normal", "scar", "union", "3way", "3way-sspcab", "3way-sspcab-paper"])
def test_presets(run, preset):
    result = run("train", "--preset", f"cutpaste-{preset}", "--print-config")
    values = tomllib.loads(result.out)
    assert (values["method"], values["variant"]) == ("cutpaste", preset.split("-")[0])
    assert values["sspcab"] == {"3way-sspcab": "before-layer4", "3way-sspcab-paper": "last-block"}.get(preset, "none")


def test_weights_for_an_experiment_that_starts_from_none_are_one_line(data_root, weights_file, run, tmp_path):
    where = ["--data", data_root, "--category", "texture", "--output", tmp_path]
    result = run("reproduce", "--preset", "cutpaste-3way-sspcab-paper", *where, "--weights", weights_file)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "say for which backbone, as in resnet18=FILE" in result.err


def test_strict_is_for_the_test_images_that_choose_the_step_too(data_root, weights_file, run, tmp_path):
    shutil.copytree(data_root / "texture", tmp_path / "data/texture")
    (tmp_path / "data/texture/test/good/000.png").write_bytes(b"")
    where = ["--data", tmp_path / "data", "--weights", weights_file, "--output", tmp_path / "runs"]
    result = run("train", *FEW, *where, "--select", "best-on-test", "--eval", "--strict")
    assert (result.code, result.out) == (2, "")
    assert not (tmp_path / "runs/texture/model.safetensors").exists()


def test_a_model_of_cutpaste_needs_no_weights_beside_its_own(trained, tmp_path):
    """Others are for the models of other methods in the same call."""
    torch.save({}, tmp_path / "others.pth")
    loaded = CutPaste.load(trained / "model.safetensors", weights=tmp_path / "others.pth")
    assert loaded.config.pretrained == "resnet18"
