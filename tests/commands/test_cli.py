"""The commands as their users call them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

import padim
from padim import Config, Padim
from padim.cli import main as main_module
from padim.data.layouts import find_category
from padim.detectors.registry import CONFIGURATIONS

PROTOCOL = ("--resize", 64, "--crop", 64, "--channels", 20, "--batch-size", 4)
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
COMMANDS = tuple(main_module.COMMANDS)


@pytest.fixture(scope="session")
def trained(data_root, weights_file, tmp_path_factory):
    """A folder with a model of each category."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("runs")
    arguments = ["--data", data_root, "--weights", weights_file, "--output", output, *PROTOCOL]
    assert main(["--category", "all", *map(str, arguments)]) == 0
    return output


# Training


def test_train_writes_a_model_and_a_summary(run, data_root, weights_file, tmp_path):
    arguments = ("--data", data_root, "--weights", weights_file, "--output", tmp_path, *PROTOCOL)
    result = run("train", "--category", "texture", *arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("texture: 8 images in ")
    summary = json.loads((tmp_path / "texture/train.json").read_text())
    assert summary["images"] == 8
    assert summary["images_per_second"] == pytest.approx(8 / summary["seconds"], rel=0.01)
    assert summary["peak_memory_bytes"] > 50e6
    assert Config.from_dict(summary["config"]) == SMALL
    model = Padim.load(tmp_path / "texture/model.safetensors")
    assert (model.config, model.provenance.category, model.provenance.images) == (SMALL, "texture", 8)
    assert {path.name for path in (tmp_path / "texture").iterdir()} == {"model.safetensors", "train.json"}


def test_a_category_that_is_not_there_downloads_nothing(run, data_root, tmp_path):
    result = run("train", "--category", "texxture", "--data", data_root, "--output", tmp_path, *PROTOCOL)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "texxture" in result.err


def test_what_is_evaluated_is_what_was_written(run, data_root, weights_file, tmp_path):
    where = ("--category", "texture", "--data", data_root, "--output", tmp_path, "--json")
    result = run("train", *where, "--weights", weights_file, *PROTOCOL, "--storage", "fp16", "--eval")
    written, read = json.loads(result.out.splitlines()[1]), json.loads(run("eval", *where).out)
    assert written | {key: read[key] for key in ("seconds", "images_per_second", "peak_memory_bytes")} == read


def test_the_same_command_gives_the_same_model(run, data_root, weights_file, tmp_path):
    for name in ("a", "b"):
        arguments = ("--data", data_root, "--weights", weights_file, "--output", tmp_path / name, *PROTOCOL)
        assert run("train", "--category", "object", *arguments, "--json").code == 0
    first, second = ((tmp_path / name / "object/model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_train_and_evaluate_in_one_run(run, data_root, weights_file, tmp_path):
    arguments = ("--data", data_root, "--weights", weights_file, "--output", tmp_path, *PROTOCOL, "--eval")
    result = run("train", "--category", "texture", *arguments, "--json")
    trained, evaluated = map(json.loads, result.out.splitlines())
    again = json.loads(run("eval", "--data", data_root, "--output", tmp_path, "--json").out)
    for key in ("images", "image_auroc", "pixel_auroc", "aupro", "pixel_ap", "pixel_f1_max"):
        assert evaluated[key] == again[key]
    assert trained["images"] == 8
    printed = run("train", "--category", "texture", *arguments)
    assert "mean" not in printed.out  # which would repeat the one category
    assert "WARNING: texture: the threshold rests on the highest score of 8 training images alone" in printed.err
    several = run("train", "--category", "texture", "object", *arguments)
    assert several.out.splitlines()[-1].startswith("mean")


def test_one_category_that_fails_costs_the_others_nothing(run, data_root, weights_file, tmp_path):
    arguments = ("--data", data_root, "--weights", weights_file, "--output", tmp_path, *PROTOCOL, "--json")
    result = run("train", "--category", "nothing", "object", *arguments)
    assert result.code == 2
    assert json.loads(result.out)["category"] == "object"
    assert result.err.startswith("ERROR: nothing: no category 'nothing' with images")
    assert result.err.count("\n") == 1


def test_command_line_over_file_over_default(run, tmp_path):
    (tmp_path / "config.toml").write_text('seed = 5\ncrop = 128\ninterpolation = "bicubic"\n')
    result = run("train", "--config", tmp_path / "config.toml", "--seed", 6, "--layers", "layer2", "--print-config")
    expected = Config(seed=6, crop=(128,), interpolation="bicubic", layers=("layer2",))
    assert Config.from_dict(tomllib.loads(result.out)) == expected
    result = run("train", "--preset", "anomalib-wr50", "--channels", 0, "--crop", 64, "--print-config")
    assert Config.from_dict(tomllib.loads(result.out)) == Config(
        backbone="wide_resnet50_2", channels=0, resize=(256, 256), crop=(64,), interpolation="bilinear"
    )
    assert tomllib.loads(run("train", "--resize", 64, 64, "--crop", "--print-config").out)["crop"] == []


def test_damaged_images_are_named_and_counted(run, weights_file, tmp_path):
    good = tmp_path / "data/part/train/good"
    good.mkdir(parents=True)
    for number in range(3):
        Image.new("L", (70 + number, 64), 100 * number).save(good / f"{number}.png")
    (good / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    arguments = ("--category", "part", "--data", tmp_path / "data", "--weights", weights_file, *PROTOCOL)
    result = run("train", *arguments, "--output", tmp_path / "runs")
    assert result.code == 0
    assert "3.png" in result.err
    assert "3 images, 1 skipped" in result.out
    strict = run("train", *arguments, "--output", tmp_path / "strict", "--strict")
    assert (strict.code, strict.out) == (2, "")
    assert "3.png" in strict.err
    assert not (tmp_path / "strict/part/model.safetensors").exists()
    for number in (0, 1):
        (good / f"{number}.png").write_bytes(b"")
    result = run("train", *arguments, "--output", tmp_path / "runs")
    assert result.code == 2
    assert "part: a Gaussian needs at least two training images, there is 1" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which category? Pass --category NAME"),
        (("--category", "../texture"), "category '../texture' is not the name of a folder"),
        (("--category", "texture", "--data", "nowhere"), "there is no data folder nowhere"),
        (("--category", "texture", "--weights", "nowhere.pth"), "can't read the weights nowhere.pth"),
        (("--category", "texture", "--device", "cuda:77"), "torch finds no device 'cuda:77'"),
        (("--category", "texture", "--sigma", "1e9"), "sigma: 1000000000.0 pixels smooth a map"),
        (("--category", "texture", "--preset", "nothing"), "there is no preset 'nothing'"),
        (("--category", "texture", "--crop", "300"), "crop: 300 x 300 is larger"),
        (("--category", "texture", "--resize", "100", "--crop", "100"), "instead of 100 take 96 or 112"),
        (("--category", "texture", "--channels", "2000"), "--channels 2000 is more than the 448"),
        (("--category", "texture", "--seed", "x"), "argument --seed: invalid int value: 'x'"),
        (("--category", "texture", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("--category", "texture", "--output", "/dev/null/runs"), "can't write to the folder /dev/null/runs"),
        (("--category", "texture", "--workers", "0"), "0 is not a number from 1 to 256"),
        (("--category", "texture", "--ignore", ""), "an argument is empty: is a variable unset?"),
    ],
    ids=str,
)
def test_a_users_mistake_is_one_line_and_exit_code_2(run, data_root, weights_file, tmp_path, arguments, message):
    defaults = {"--data": data_root, "--weights": weights_file, "--output": tmp_path}
    for option, value in defaults.items():
        if option not in arguments:
            arguments += (option, value)
    result = run("train", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.rglob("*.safetensors")) == []


# Evaluation


def test_eval_prints_a_table_and_writes_json(run, trained, data_root):
    result = run("eval", "--data", data_root, "--output", trained)
    assert (result.code, result.err) == (0, "")
    header, *rows = (line.split() for line in result.out.splitlines())
    assert " ".join(header).startswith("category images image AUROC pixel AUROC AUPRO 0.3 pixel AP")
    assert [(row[0], row[1]) for row in rows] == [("object", "14"), ("texture", "14"), ("mean", "28")]
    figures = [json.loads((trained / name / "eval.json").read_text()) for name in ("object", "texture")]
    for row, figure in zip(rows, figures):
        assert row[2:6] == [f"{figure[key]:.4f}" for key in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")]
    assert float(rows[2][2]) == pytest.approx(np.mean([figure["image_auroc"] for figure in figures]), abs=1e-4)


def test_eval_json_has_what_programs_need(run, trained, data_root):
    result = run("eval", "--data", data_root, "--output", trained, "--category", "texture", "--json")
    (figures,) = map(json.loads, result.out.splitlines())
    keys = "category, image_auroc, pixel_auroc, aupro, pixel_ap, pixel_f1_max, image_f1_max, seconds, peak_memory_bytes"
    assert set(keys.split(", ")) <= set(figures)
    assert (figures["images"], figures["defective"], figures["skipped"], figures["unmasked"]) == (14, 10, 0, 0)
    stored = json.loads((trained / "texture/eval.json").read_text())
    assert len(stored["scores"]) == 14
    labels = [score["defect"] != "good" for score in stored["scores"]]
    values = np.array([score["score"] for score in stored["scores"]])
    pairs = [(p > n) + (p == n) / 2 for p in values[labels] for n in values[np.invert(labels)]]
    assert figures["image_auroc"] == pytest.approx(np.mean(pairs))


def test_eval_says_what_is_missing(run, data_root, trained, tmp_path):
    result = run("eval", "--data", data_root, "--output", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert f"no trained model under {tmp_path}: run padim-train first" in result.err
    result = run("eval", "--data", data_root, "--output", trained, "--category", "texture", "bottle", "--json")
    assert result.code == 2
    assert json.loads(result.out)["category"] == "texture"
    assert f"ERROR: bottle: there is no model {trained}/bottle/model.safetensors: padim-train writes one" in result.err


def test_eval_without_masks_still_has_image_figures(run, trained, data_root, tmp_path):
    for part in ("test", "train"):
        (tmp_path / "texture").mkdir(exist_ok=True)
        (tmp_path / "texture" / part).symlink_to(data_root / "texture" / part)
    result = run("eval", "--data", tmp_path, "--output", trained, "--category", "texture", "--json")
    figures = json.loads(result.out)
    assert (result.code, figures["unmasked"], figures["pixel_auroc"], figures["aupro"]) == (0, 10, None, None)
    assert 0 < figures["image_auroc"] <= 1
    assert "10 defective images have no mask" in result.err


# Prediction


def test_predict_writes_heatmaps_and_one_json_line_an_image(run, trained, data_root, tmp_path):
    model = trained / "texture/model.safetensors"
    folder = data_root / "texture/test"
    result = run("predict", "--model", model, folder, "--out", tmp_path)
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    items = find_category(data_root, "texture").test
    assert [line["path"] for line in lines] == [str(item.path) for item in items]
    assert len({line["heatmap"] for line in lines}) == len(lines)
    scores = Padim.load(model).score(torch.stack([pixels(item.path) for item in items]))
    for line, score in zip(lines, scores.images.tolist()):
        assert line["score"] == pytest.approx(score, rel=1e-5)
        verdict = "anomalous" if score >= line["threshold"] else "normal"
        assert (line["verdict"], line["false_alarm_rate"]) == (verdict, pytest.approx(1 / 9))  # eight images vouch for
        assert all(region["area"] > 0 for region in line["regions"])
        assert bool(line["regions"]) == (verdict == "anomalous")
        with Image.open(line["heatmap"]) as heatmap:
            assert (heatmap.size, heatmap.mode) == ((64, 64), "RGB")
    anomalous = sum(line["verdict"] == "anomalous" for line in lines)
    assert re.fullmatch(rf"14 images: {anomalous} anomalous, \d+\.\d images/s\n", result.err)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_predict_options(run, trained, data_root, tmp_path):
    model, image = trained / "texture/model.safetensors", data_root / "texture/test/stain/000.png"
    (expected,) = Padim.load(model).score(pixels(image)[None]).maps.numpy()
    score = float(expected.max())
    common = ("predict", "--model", model, image, "--out", tmp_path)
    line = json.loads(run(*common, "--threshold", score - 1, "--panel", "--raw", "npy").out)
    assert line["verdict"] == "anomalous"
    named = "path verdict score p_value threshold false_alarm_rate regions seen heatmap panel raw"
    assert set(line) == set(named.split())
    (region,) = [region for region in line["regions"] if region["peak"] == pytest.approx(score)]
    y, x = np.unravel_index(expected.argmax(), expected.shape)
    left, top, right, bottom = region["box"]
    assert left <= x < right
    assert top <= y < bottom
    assert region["area"] <= (expected >= score - 1).sum()
    assert line["seen"] == [0, 0, 64, 64]
    np.testing.assert_allclose(np.load(line["raw"], allow_pickle=False), expected, rtol=1e-5)
    with Image.open(line["panel"]) as panel:
        assert panel.width > 3 * panel.height
    line = json.loads(run(*common, "--threshold", score + 1, "--raw", "png16", "--range", 0, 2 * score).out)
    assert line["verdict"] == "normal"
    grey = np.asarray(Image.open(line["raw"]))
    assert grey.dtype == np.uint16
    np.testing.assert_allclose(grey / 65535 * 2 * score, expected, atol=2 * score / 65535)
    assert run(*common, "--range", 3, 2).code == 2
    assert "nan is not a finite number" in run(*common, "--threshold", "nan").err


def test_predict_takes_images_of_any_shape_and_kind(run, trained, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    Image.new("RGB", (300, 120), "red").save(images / "wide.png")
    Image.new("L", (20, 33)).save(images / "tiny.jpg")
    Image.new("RGBA", (65, 400)).save(images / "tall.png")
    Image.new("RGB", (1, 100)).save(images / "thread.png")
    (images / "bad\nname.png").write_bytes(b"bad")
    model = trained / "object/model.safetensors"
    result = run("predict", "--model", model, images, "--out", tmp_path / "in/out")
    sizes = {line["path"]: size_of(line["heatmap"]) for line in map(json.loads, result.out.splitlines())}
    assert {os.path.basename(path): size for path, size in sizes.items()} == {
        "wide.png": (300, 120),
        "tiny.jpg": (20, 33),
        "tall.png": (65, 400),
        "thread.png": (1, 100),
    }
    assert result.code == 0
    assert "bad name.png" in result.err
    assert f"{tmp_path / 'in/out'} lies in {images}: images there are not scored now" in result.err
    assert result.err.count("\n") == 3
    assert "5 images: 4 anomalous, 1 unreadable, " in result.err
    again = run("predict", "--model", model, images, "--out", tmp_path / "in/out")
    assert again.out == result.out  # its own heatmaps are not scored
    assert run("predict", "--model", model, images / "bad\nname.png", "--out", tmp_path / "out").code == 2
    assert "/in, where the results go" in run("predict", "--model", model, images, "--out", images).err


def test_false_alarm_rates(run, trained, data_root, tmp_path):
    common = ("--category", "texture", "--data", data_root, "--output", trained, "--json")
    found = {}
    for rate in (0.125, 0.5):
        figures = json.loads(run("eval", *common, "--false-alarm-rate", rate).out)
        assert figures["false_alarm_rate"] == rate
        scores = [(entry["defect"] != "good", entry["score"] >= figures["threshold"]) for entry in scored(trained)]
        for name, defective in (("false_alarms", False), ("defects_found", True)):
            flagged = [above for anomalous, above in scores if anomalous == defective]
            assert figures[name] == pytest.approx(np.mean(flagged))
        found[rate] = figures["threshold"]
    assert found[0.5] < found[0.125]
    for rate, message in (
        (0.01, "takes at least 99 training images, the model has 8"),
        (2, "2 is not between 0 and 1"),
    ):
        refused = run("eval", *common, "--false-alarm-rate", rate)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err


def scored(folder):
    return json.loads((folder / "texture/eval.json").read_text())["scores"]


def test_without_a_calibration_there_is_no_verdict(run, data_root, weights_file, tmp_path):
    common = ("--category", "texture", "--data", data_root, "--output", tmp_path)
    result = run("train", *common, "--weights", weights_file, *PROTOCOL, "--no-calibration", "--eval", "--json")
    summary, figures = map(json.loads, result.out.splitlines())
    assert (summary["threshold"], figures["threshold"], figures["false_alarms"]) == (None, None, None)
    assert "no calibration" in run("eval", *common, "--false-alarm-rate", "0.2").err
    model, image = tmp_path / "texture/model.safetensors", data_root / "texture/test/stain/000.png"
    line = json.loads(run("predict", "--model", model, image, "--out", tmp_path / "out").out)
    assert (line["verdict"], line["threshold"], line["regions"]) == (None, None, [])


def test_running_out_of_memory_is_one_line(run, data_root, weights_file, tmp_path, monkeypatch):
    def fail(*_, **__):
        torch.empty(2**60)

    monkeypatch.setattr(Padim, "fit", fail)
    arguments = ("--category", "texture", "--data", data_root, "--weights", weights_file, "--output", tmp_path)
    result = run("train", *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "out of memory: take a smaller --batch-size" in result.err
    too_short = ImportError("libtorch_cuda.so: failed to map segment from shared object")
    monkeypatch.setattr(Padim, "fit", lambda *_, **__: (_ for _ in ()).throw(too_short))
    result = run("train", *arguments)
    assert (result.code, result.err.count("\n"), "out of memory" in result.err) == (2, 1, True)
    monkeypatch.setattr(Padim, "fit", lambda *_, **__: torch.ones(2) @ torch.ones(3))  # a bug is not hidden
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run("train", *arguments)


def test_a_model_file_can_be_read_by_whom_the_umask_lets(trained, tmp_path):
    (tmp_path / "plain").touch()
    model = trained / "texture/model.safetensors"
    assert model.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_model_of_images_that_never_vary_still_draws(run, weights_file, tmp_path):
    good = tmp_path / "data/flat/train/good"
    good.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 64), "grey").save(good / f"{number}.png")
    where = ("--data", tmp_path / "data", "--output", tmp_path, "--weights", weights_file)
    assert run("train", "--category", "flat", *where, *PROTOCOL).code == 0
    result = run("predict", "--model", tmp_path / "flat/model.safetensors", good, "--out", tmp_path / "out")
    assert (result.code, "ERROR" in result.err) == (0, False)


def test_the_colours_of_an_image_do_not_depend_on_the_others(run, trained, data_root, tmp_path):
    model, folder = trained / "texture/model.safetensors", data_root / "texture/test/stain"
    run("predict", "--model", model, folder, "--out", tmp_path / "all")
    run("predict", "--model", model, folder / "001.png", "--out", tmp_path / "one")
    one, among_all = (np.asarray(Image.open(tmp_path / name / "001_heatmap.png")) for name in ("one", "all"))
    assert np.array_equal(one, among_all)


# All of them


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_without_loading_torch(name):
    code = f"""
import sys
from padim.cli.{name} import main
try:
    main(["--help"])
finally:
    print(set(sys.modules) & {{"torch", "numpy", "PIL"}})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"usage: padim-{name}")
    assert result.stdout.endswith("set()\n")
    assert result.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    module = import_module(f"padim.cli.{name}")
    methods = [{"method": method} for method in CONFIGURATIONS] if name == "train" else [{}]
    for parser in (module.parser(**method) for method in methods):
        assert parser.description
        assert all(action.help for action in parser._actions)


def test_predict_refuses_what_is_no_model(run, weights_file, tmp_path):
    result = run("predict", "--model", weights_file, tmp_path, "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_quietly_and_leaves_no_model(data_root, weights_file, tmp_path):
    data = tmp_path / "data/many/train/good"
    data.mkdir(parents=True)
    for number in range(2000):
        (data / f"{number}.png").symlink_to(data_root / "texture/train/good/000.png")
    command = [sys.executable, "-m", "padim.cli.train", "--category", "many", "--data", tmp_path / "data"]
    options = ["--weights", weights_file, "--output", tmp_path / "runs"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "runs/many").exists():  # the work begins
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert list((tmp_path / "runs/many").iterdir()) == []


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error(trained, data_root, tmp_path):
    model = trained / "texture/model.safetensors"
    command = [
        sys.executable,
        "-m",
        "padim.cli.predict",
        "--model",
        model,
        data_root,
        "--out",
        tmp_path,
        "--batch-size",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_synth_refuses_nonsense(run, tmp_path):
    assert run("synth", tmp_path, "--size", 4).code == 2
    assert run("synth", tmp_path, "--train", -1).code == 2
    result = run("synth", tmp_path, "--size", 16, 24, "--train", 1, "--good", 1, "--defective", 1)
    assert result.out == f"{tmp_path / 'texture'}: 7 images\n"
    assert size_of(tmp_path / "texture/train/good/000.png") == (24, 16)


def test_update_takes_more_images_into_a_model(data_root, weights_file, run, tmp_path):
    images = sorted((data_root / "texture/train/good").iterdir())
    for name, part in (("first", images[:5]), ("second", images[5:]), ("all", images)):
        (tmp_path / name).mkdir()
        for path in part:
            (tmp_path / name / path.name).symlink_to(path)
    protocol = ["--resize", 64, "--crop", 64, "--channels", 20, "--weights", weights_file]
    out = ["--category", "texture", "--output", tmp_path / "runs", "--json"]
    model = tmp_path / "runs/texture/model.safetensors"
    assert run("train", "--normal", tmp_path / "first", *protocol, *out, "--keep-moments").code == 0
    result = run("train", "--normal", tmp_path / "second", "--update", model, *out)
    summary = json.loads(result.out)
    assert (result.code, summary["images"]) == (0, len(images)), result.err
    assert summary["images_per_second"] == pytest.approx(3 / summary["seconds"], rel=0.01)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/image.png").symlink_to(images[0])
    dry = run("train", "--normal", tmp_path / "one", "--update", model, *out, "--dry-run")
    assert (dry.code, json.loads(dry.out)["images"]) == (0, 1), dry.err
    updated = run("eval", "--data", data_root, "--output", tmp_path / "runs", "--json")
    assert run("train", "--normal", tmp_path / "all", *protocol, *out).code == 0
    whole = run("eval", "--data", data_root, "--output", tmp_path / "runs", "--json")
    for key, value in json.loads(whole.out).items():
        if key.endswith(("auroc", "ap", "f1_max", "aupro")):
            assert json.loads(updated.out)[key] == pytest.approx(value, abs=1e-4)

    for options, message in (
        (["--channels", 5], "--update keeps the configuration"),
        (["--preset", "demo"], "--update keeps the configuration"),
        (["--precision", "auto"], "--update keeps the configuration"),
        ([], "trained without --keep-moments"),
    ):
        for look in ([], ["--dry-run"]):
            result = run("train", "--normal", tmp_path / "second", "--update", model, *out, *options, *look)
            assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
            assert message in result.err
    result = run("train", "--category", "all", "--data", data_root, "--update", model)
    assert (result.code, "--update is for one model" in result.err) == (2, True)


@pytest.mark.slow
def test_tiles_from_training_to_prediction(data_root, weights_file, run, tmp_path):
    protocol = ["--size", 64, 96, "--tile", 64, 48, "--tile-overlap", 16, "--tile-model", "position", "--channels", 20]
    where = ["--category", "texture", "--data", data_root, "--output", tmp_path]
    result = run("train", *where, "--weights", weights_file, *protocol, "--eval", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out.splitlines()[1])["images"] == 14
    model, image = tmp_path / "texture/model.safetensors", data_root / "texture/test/good/000.png"
    assert run("predict", "--model", model, image, "--out", tmp_path, "--raw", "npy").code == 0
    assert np.load(tmp_path / "000_map.npy").shape == (64, 96)
    assert run("export", "--model", model).code == 0
    line = json.loads(run("predict", "--model", tmp_path / "texture/model.onnx", image).out)
    assert line["score"] == pytest.approx(json.loads(run("predict", "--model", model, image).out)["score"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 64, "--crop", 64], "--size: give a side, or height and width, and neither --resize nor --crop"),
        (["--size", 64, 64, 64], "--size: give a side"),
        (["--size", 64, "--tile", 96], "tile: 96 is larger than the image of 64 x 64 pixels"),
        (["--method", "cutpaste", "--tile", 64], "--tile is an option of the method padim, and this is cutpaste"),
    ],
    ids=str,
)
def test_sizes_that_make_no_sense(data_root, run, options, message):
    result = run("train", "--category", "texture", "--data", data_root, *options, "--print-config")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_a_dry_run_says_what_training_will_take(data_root, run, tmp_path, monkeypatch):
    common = ["--category", "texture", "--data", data_root, "--output", tmp_path, "--dry-run"]
    result = run("train", *common, "--json")
    assert result.code == 0, result.err
    sizes = json.loads(result.out)
    assert (sizes["images"], sizes["moments_bytes"] > 28e6) == (8, True)  # without weights, which are not downloaded
    assert sizes["memory_bytes"] > 2 * sizes["factors_bytes"]
    kept = json.loads(run("train", *common, "--json", "--keep-moments", "--size", 64, "--batch-size", 1).out)
    plain = json.loads(run("train", *common, "--json", "--size", 64, "--batch-size", 1).out)
    assert kept["model_bytes"] > plain["model_bytes"] + plain["moments_bytes"]
    for refused in (["--resume"], ["--method", "cutpaste", "--keep-moments"]):
        result = run("train", *common, *refused)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    result = run("train", *common[2:], "--category", "nothing", "texture", "--size", 64)
    assert (result.code, result.err.count("\n"), result.out.count("\n")) == (2, 1, 1)
    monkeypatch.setattr("padim.system.machine.available_memory_bytes", lambda: 10e9)
    cutpaste = run("train", *common, "--method", "cutpaste", "--json")
    assert json.loads(cutpaste.out)["memory_bytes"] > 10e9
    result = run("train", *common, "--method", "cutpaste")
    assert result.out.startswith("texture: 8 images, memory ")
    assert result.out.endswith("MB, more memory than is free\n")
    assert not any(tmp_path.iterdir())


# padim


def test_one_command_has_all_others_as_subcommands(run, data_root, tmp_path):
    assert {f"padim-{name}": f"padim.cli.{name}:main" for name in main_module.COMMANDS} | {
        "padim": "padim.cli.main:main"
    } == PROJECT["scripts"]
    result = run("main", "synth", tmp_path, "--size", 16, "--train", 1, "--good", 1, "--defective", 1)
    assert result == run("synth", tmp_path, "--size", 16, "--train", 1, "--good", 1, "--defective", 1)
    assert run("main", "train").err.startswith("ERROR: which category?")
    assert run("main", "train", "--help").out.startswith("usage: padim train ")
    assert run("main", "data", "check", data_root).code == 0
    for unknown in ("tarin", "train.py"):
        result = run("main", unknown)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert "there are train, eval, predict" in result.err


def test_padim_itself(run):
    assert run("main", "--version").out == f"padim {padim.__version__}\n"
    listed = run("main").out
    assert listed == run("main", "--help").out
    assert all(f"\n  {name} " in listed for name in main_module.COMMANDS)
    module = subprocess.run([sys.executable, "-m", "padim", "--version"], capture_output=True, text=True)
    assert module.stdout == f"padim {padim.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_all_commands_and_options(run, shell, monkeypatch):
    script = run("main", "--print-completion", shell).out
    assert all(word in script for word in ("reproduce", "false-alarm-rate", "print-config"))
    monkeypatch.setitem(sys.modules, "shtab", None)
    result = run("main", "--print-completion", shell)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "pip install 'padim-toolkit[completion]'" in result.err


def test_help_shows_the_options_of_one_method_and_names_the_other(run):
    padim_help = run("train", "--help").out
    cutpaste_help = run("train", "--method", "cutpaste", "--help").out
    assert "--tile-overlap" in padim_help
    assert "--tile-overlap" not in cutpaste_help
    assert "--sspcab-weight" in cutpaste_help
    assert "--sspcab-weight" not in padim_help
    assert "padim-train --method cutpaste --help" in " ".join(padim_help.split())
    assert run("train", "--preset", "cutpaste-scar", "--help").out == cutpaste_help
    assert padim_help.index("--category") < padim_help.index("--data") < padim_help.index("--epsilon")


@pytest.mark.parametrize(
    ("below", "options", "name"),
    [
        ("shop/cap/train/good", (), "cap"),
        ("shop/photos", (), "photos"),
        ("shop/cap/good", ("--category", "lid"), "lid"),
    ],
)
def test_a_category_has_the_name_of_its_folder(run, data_root, tmp_path, below, options, name):
    shutil.copytree(data_root / "texture/train/good", tmp_path / below)
    found = run("data", "check", "--normal", tmp_path / below, *options, "--json")
    assert json.loads(found.out)["category"] == name


def test_a_category_may_be_called_all(run, data_root, weights_file, tmp_path):
    shutil.copytree(data_root / "texture", tmp_path / "all")
    found = run("train", "--dry-run", "--data", tmp_path, "--weights", weights_file, *PROTOCOL, "--category", "all")
    assert (found.code, found.out[:4]) == (0, "all:")


def test_a_misspelt_name_beside_all_is_named(run, data_root, weights_file, trained):
    for command in (
        ("train", "--dry-run", "--data", data_root, "--weights", weights_file, *PROTOCOL),
        ("eval", "--data", data_root, "--output", trained),
    ):
        result = run(*command, "--category", "all", "nope")
        assert (result.code, "nope" in result.err, result.err.count("\n")) == (2, True, 1)
        assert "texture" in result.out


def test_nothing_is_trained_for_an_evaluation_without_images(run, data_root, weights_file, tmp_path):
    normal = data_root / "texture/train/good"
    options = ("--weights", weights_file, "--output", tmp_path, *PROTOCOL)
    result = run("train", "--normal", normal, *options, "--eval")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "has no test images: pass --test or --defect" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_the_images_cannot_support_is_said(run, data_root, weights_file, tmp_path):
    where = ("--category", "texture", "--data", data_root, "--weights", weights_file, "--output", tmp_path, *PROTOCOL)
    result = run("train", *where, "--false-alarm-rate", 0.01)
    assert (result.code, result.err.count("\n")) == (0, 1)
    assert (
        "texture: 8 images support a false-alarm rate of 0.112 and more, which is taken instead of 0.01" in result.err
    )
    assert result.out.endswith("for a false-alarm rate of 0.111\n")
    assert run("train", *where, "--false-alarm-rate", 0.2).err == ""


@pytest.mark.parametrize(("units", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_fastest_precision_of_the_cpu(units, chosen, run, data_root, weights_file, tmp_path, monkeypatch):
    monkeypatch.setattr("padim.cli.options.multiplies_bfloat16", lambda: units)
    where = ["--category", "texture", "--data", data_root, "--output", tmp_path]
    small = ["--resize", 64, "--crop", 64, "--channels", 20, "--weights", weights_file, "--device", "cpu"]
    assert f'precision = "{chosen}"' in run("train", "--print-config", "--precision", "auto", "--device", "cpu").out
    assert run("train", *where, *small).code == 0
    found = run("eval", *where, "--precision", "auto", "--device", "cpu", "--json")
    assert found.code == 0
    said = "was fitted in fp32: in bf16, scores move a little and the threshold stays"
    assert (found.err.count(said), found.err.count("was fitted in")) == ((1, 1) if units else (0, 0))
