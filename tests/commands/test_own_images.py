"""Images in folders of one's own, from the first training to sorted verdicts, and what protocols leave unseen."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import library_network
from PIL import Image

from padim import Padim
from padim.data.synth import write_category
from padim.deploy import sorting

FEW = ("--channels", "20", "--batch-size", "4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Plates of 96 x 48 pixels: 20 normal images, a stranger among them, and test images with masks."""
    folder = tmp_path_factory.mktemp("photos")
    for _ in write_category(folder / "plate", "plate", 48, 96, train=20, good=4, defective=2, seed=3):
        pass
    (folder / "plate/train/good").rename(folder / "ok")
    stranger = np.asarray(Image.open(folder / "ok/007.png"))
    Image.fromarray(255 - stranger[::-1]).save(folder / "ok/007.png")
    return folder


@pytest.fixture(scope="module")
def folders(photos):
    return ("--test", photos / "plate/test", "--masks", photos / "plate/ground_truth")


@pytest.fixture(scope="module")
def trained(photos, folders, weights_file, tmp_path_factory):
    """The folder of the model `ok`, and what the training said."""
    from padim.cli.train import main

    output = tmp_path_factory.mktemp("runs")
    arguments = ("--normal", photos / "ok", "--weights", weights_file, "--output", output, *FEW, "--eval", *folders)
    assert main([*map(str, arguments)]) == 0
    return output


def summary(folder):
    return json.loads((folder / "ok/train.json").read_text())


# What is seen


def test_whole_images_are_seen_in_their_own_proportions(run, photos, weights_file, tmp_path):
    common = ("train", "--normal", photos / "ok", "--weights", weights_file, "--output", tmp_path, *FEW)
    result = run(*common)
    assert result.code == 0
    assert "ok: images of 96 x 48 pixels are seen whole, resized to 352 x 176, which is --size 176 352" in result.err
    assert Padim.load(tmp_path / "ok/model.safetensors").config.image_size == (176, 352)
    assert "resize = [176, 352]\ncrop = []" in run(*common, "--print-config").out
    result = run(*common, "--size", 48, 96)
    assert "seen whole" not in result.err
    assert summary(tmp_path)["config"]["resize"] == [48, 96]
    result = run(*common, "--resize", 64, "--crop", 64)
    assert "WARNING: ok: the protocol sees 50% of the images on average" in result.err


def test_folders_are_warned_of_once(run, photos, weights_file, tmp_path):
    shutil.copytree(photos / "plate/test/stain", tmp_path / "later/monday")
    common = ("train", "--normal", photos / "ok", "--weights", weights_file, "--output", tmp_path, *FEW)
    result = run(*common, "--eval", "--test", tmp_path / "later")
    assert result.err.count("are taken as normal; with a folder good in it, the others are defects") == 1


def test_nothing_is_said_of_the_size_of_images_that_cannot_be_read(run, weights_file, tmp_path):
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok/0.png").write_bytes(b"bad")
    result = run("train", "--normal", tmp_path / "ok", "--weights", weights_file, "--output", tmp_path, *FEW)
    assert result.code == 2
    assert "seen whole" not in result.err


def test_a_protocol_that_crops_much_is_told_once(run, photos, weights_file, tmp_path):
    root = tmp_path / "data"
    for name in ("one", "two"):
        shutil.copytree(photos / "plate", root / name)
        shutil.copytree(photos / "ok", root / name / "train/good")
    common = ("--data", root, "--output", tmp_path / "runs")
    protocol = ("--resize", 64, "--crop", 64, "--weights", weights_file, *FEW)
    result = run("train", "--category", "all", *common, *protocol)
    assert result.err.count("the protocol sees 50% of the images on average") == 1
    result = run("eval", *common)
    assert result.err.count("the protocol sees 50% of the images on average") == 1
    assert result.err.count("defects lie outside what the model sees") == 0  # plates lie in the middle


def test_defects_that_are_not_seen_are_counted(run, photos, weights_file, tmp_path):
    """Half of the masks are moved into the corner, which the crop cuts off."""
    masks = tmp_path / "masks"
    shutil.copytree(photos / "plate/ground_truth", masks)
    for path in masks.glob("*/000_mask.png"):
        corner = Image.new("L", (96, 48))
        corner.paste(255, (0, 0, 10, 10))
        corner.save(path)
    common = ("--normal", photos / "ok", "--test", photos / "plate/test", "--masks", masks, "--output", tmp_path)
    result = run("train", *common, "--weights", weights_file, *FEW, "--resize", 48, "--crop", 48, "--eval", "--report")
    assert "WARNING: ok: 5 of 10 defects lie outside what the model sees" in result.err
    found = json.loads((tmp_path / "ok/eval.json").read_text())
    assert found["defects_outside"] == 5
    assert {kind["name"]: kind["outside"] for kind in found["defect_types"]} == dict.fromkeys(
        ("blur", "faint", "scratch", "stain", "tint"), 1
    )
    outside = {score["path"] for score in found["scores"] if score.get("outside")}
    assert outside == {str(path) for path in (photos / "plate/test").glob("*/000.png") if path.parent.name != "good"}


def test_a_network_of_a_library_from_training_to_verdicts(run, photos, folders, tmp_path):
    torch.save(library_network("timm:test_vit").state_dict(), tmp_path / "weights.pth")
    common = ("train", "--normal", photos / "ok", "--weights", tmp_path / "weights.pth", "--output", tmp_path, *FEW)
    network = ("--backbone", "timm:test_vit", "--layers", "blocks.1", "blocks.3")
    assert "features of an image" in run(*common, *network, "--dry-run").out
    assert run(*common, *network, "--eval", *folders).code == 0
    assert summary(tmp_path)["config"]["resize"] == [192, 384]  # multiples of 32
    result = run("predict", "--model", tmp_path / "ok/model.safetensors", photos / "ok", "--out", tmp_path / "out")
    assert result.out.count('"verdict": ') == 20
    for wrong, message in (
        (("--backbone", "timm:test_vit"), "has no maps named layer1, layer2, layer3; its stages end at "),
        (("--backbone", "timm:vit", "--layers", "blocks.1"), "backbone: timm has no network 'vit'"),
        (("--backbone", "vgg"), "backbone: 'vgg' is not one of resnet18"),
        ((*network, "--size", 40), "images or tiles of 40 x 40 pixels don't divide into patches of 16 x 16"),
    ):
        result = run(*common, *wrong)
        assert (result.code, result.out, result.err.count("ERROR")) == (2, "", 1), result.err
        assert message in result.err


# What the training remembers, and says


def test_an_evaluation_finds_the_folders_of_the_training(run, trained, folders, tmp_path):
    result = run("eval", "--output", trained, "--json")
    figures = json.loads(result.out)
    assert (result.code, figures["images"], figures["unmasked"]) == (0, 14, 0)
    assert set(summary(trained)["folders"]) == {"normal", "test", "masks"}
    named = run("eval", "--output", trained, "--json", *folders)
    assert json.loads(named.out)["pixel_auroc"] == figures["pixel_auroc"]
    shutil.copytree(trained, tmp_path / "moved")
    train = tmp_path / "moved/ok/train.json"
    train.write_text(train.read_text().replace("plate/test", "plate/gone"))
    gone = run("eval", "--output", tmp_path / "moved")
    assert (gone.code, gone.err.count("\n")) == (2, 1)
    assert "plate/gone; the model was trained with it: pass --test and --defect" in gone.err
    for damaged in ("[]", "{", '{"folders": ["x"]}', '{"folders": {"test": 5}}'):
        train.write_text(damaged)
        assert "there is no data folder data/mvtec" in run("eval", "--output", tmp_path / "moved").err


def test_a_model_without_images_to_test_on_says_what_to_pass(run, photos, weights_file, folders, tmp_path, monkeypatch):
    common = ("--weights", weights_file, "--output", tmp_path, *FEW)
    assert run("train", "--normal", photos / "ok", *common).code == 0
    refused = run("eval", "--output", tmp_path)
    assert (refused.code, refused.err) == (2, "ERROR: ok: category 'ok' has no test images: pass --test or --defect\n")
    monkeypatch.setenv("PADIM_DATA", str(photos))
    assert (
        json.loads(
            run(
                "eval",
                "--output",
                tmp_path,
                "--model",
                tmp_path / "ok/model.safetensors",
                "--category",
                "plate",
                "--json",
            ).out
        )["images"]
        == 14
    )  # a category of the data set


def test_images_that_stand_out_are_named(run, trained, photos, weights_file, tmp_path):
    stranger, *_ = summary(trained)["unusual"]
    assert stranger["path"] == str(photos / "ok/007.png")
    common = ("train", "--normal", photos / "ok", "--weights", weights_file, "--output", tmp_path, *FEW)
    result = run(*common, "--report")  # without an image to test on
    assert result.code == 0
    assert f"WARNING: ok: {photos}/ok/007.png scores {stranger['score']:.4g}, far more than the rest" in result.err
    assert "ok/007.png" in (tmp_path / "ok/report.html").read_text()
    assert not (tmp_path / "ok/eval.json").exists()
    trimmed = run(*common, "--trim", 0.05, "--json")
    found = json.loads(trimmed.out)
    assert (found["images"], found["trimmed"]) == (19, [stranger["path"]])
    assert stranger["path"] not in [image["path"] for image in found["unusual"]]
    assert "if the 1 images that were left out are good, up to 5.0 % more" in trimmed.err
    assert found["threshold"] < summary(trained)["threshold"]


def test_a_report_shows_the_images_that_its_own_model_stumbled_over(run, trained, folders, tmp_path):
    others = tmp_path / "runs/ok"
    others.mkdir(parents=True)
    image = {"path": str(tmp_path / "other.png"), "score": 99.75}
    shutil.copy(trained.parent / Path(summary(trained)["unusual"][0]["path"]), image["path"])
    (others / "train.json").write_text(json.dumps({"unusual": [image]}))
    broken = [{"path": "x" * 5000, "score": 1.0}, {"path": "y", "score": 10**400}]
    (tmp_path / "train.json").write_text(json.dumps({"unusual": broken}))
    shutil.copy(trained / "ok/model.safetensors", tmp_path)
    where = ("--output", others.parent, "--report", *folders)
    assert run("eval", "--model", trained / "ok/model.safetensors", *where).code == 0
    page = (others / "report.html").read_text()
    assert ("ok/007.png" in page, "other.png" in page) == (True, False)
    assert run("eval", "--model", tmp_path / "model.safetensors", *where).code == 0
    assert "ok/007.png" not in (others / "report.html").read_text()


def test_the_table_of_rates_and_defect_types(run, trained):
    result = run("eval", "--output", trained)
    figures = json.loads((trained / "ok/eval.json").read_text())
    normal, defective = ([s["score"] for s in figures["scores"] if (s["defect"] == "good") == good] for good in (1, 0))
    lines = [line.split() for line in result.out.splitlines()]
    (row,) = [line for line in lines if line[:2] == ["rate", "10.0%"]]
    threshold = next(rate["threshold"] for rate in figures["rates"] if rate["false_alarm_rate"] == 0.1)
    assert row[2] == f"{threshold:.4f}"
    assert row[3:] == [f"{np.mean(np.array(scores) >= threshold):.4f}" for scores in (normal, defective)]
    assert [line[0] for line in lines[-5:]] == ["blur", "faint", "scratch", "stain", "tint"]
    assert "mean" not in result.out
    assert "WARNING: ok: the threshold rests on the highest score of 20 training images alone" in result.err


# Pixels that are ignored


def test_what_is_ignored_costs_no_verdict(run, photos, weights_file, tmp_path):
    """A stain in a corner makes an image anomalous, unless the corner is ignored."""
    mask = Image.new("L", (96, 48))
    mask.paste(255, (60, 0, 96, 20))
    mask.save(tmp_path / "ignore.png")
    image = Image.open(photos / "ok/003.png")
    image.paste("white", (70, 0, 90, 10))
    image.save(tmp_path / "stained.png")
    common = ("train", "--normal", photos / "ok", "--weights", weights_file, *FEW)
    verdicts, scores = {}, {}
    for name, options in (("all", ()), ("blind", ("--ignore", tmp_path / "ignore.png"))):
        assert run(*common, "--output", tmp_path / name, "--trim", 0.05, *options).code == 0
        model = ("predict", "--model", tmp_path / name / "ok/model.safetensors", "--false-alarm-rate", 0.1)
        lines = run(*model, tmp_path / "stained.png", photos / "ok/003.png", "--out", tmp_path / name).out.splitlines()
        stained, plain = map(json.loads, lines)
        verdicts[name], scores[name] = stained["verdict"], [stained["score"], plain["score"]]
    assert verdicts == {"all": "anomalous", "blind": "normal"}
    assert scores["blind"][0] == scores["blind"][1]  # the same image but for what is ignored
    with Image.open(stained["heatmap"]) as heatmap:
        assert heatmap.getpixel((80, 5)) == pytest.approx((208, 208, 208), abs=1)  # grey over white
    Image.new("L", (48, 96), 255).save(tmp_path / "other.png")
    Image.new("L", (96, 48)).save(tmp_path / "black.png")
    for wrong, message in (
        (("--ignore", tmp_path / "other.png"), "is 48 x 96 pixels, the training images are 96 x 48"),
        (("--ignore", tmp_path / "nowhere.png"), "nowhere.png"),
        (("--ignore", tmp_path / "black.png"), "black.png marks nothing of what the model sees"),
        (("--ignore", tmp_path / "ignore.png", "--align", "shift"), "--ignore and --align exclude each other"),
    ):
        refused = run(*common, "--output", tmp_path / "refused", *wrong)
        assert (refused.code, refused.err.count("ERROR")) == (2, 1)
        assert message in refused.err
    refused = run("train", "--normal", photos / "ok", "--method", "cutpaste", "--ignore", tmp_path / "ignore.png")
    assert (refused.code, refused.err) == (
        2,
        "ERROR: --ignore: cutpaste scores whole images, and has no pixels to ignore\n",
    )


# Predictions


def test_p_values_are_conformal(run, trained, photos):
    model = trained / "ok/model.safetensors"
    normal = Padim.load(model).calibration.scores
    for line in map(json.loads, run("predict", "--model", model, photos / "plate/test").out.splitlines()):
        assert line["p_value"] == pytest.approx((1 + (normal >= np.float32(line["score"])).sum()) / 21, abs=1e-6)
        assert (line["verdict"] == "anomalous") == (line["p_value"] <= line["false_alarm_rate"] + 1e-6)
        assert len(str(line["score"])) <= 10


def test_one_image_and_the_name_of_a_picture(run, trained, photos, tmp_path):
    common = ("predict", "--model", trained / "ok/model.safetensors")
    image = photos / "plate/test/stain/000.png"
    line = json.loads(run(*common, image, "--out", tmp_path / "new/found.jpg").out)
    assert line["heatmap"] == str(tmp_path / "new/found.jpg")
    with Image.open(tmp_path / "new/found.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (96, 48))
    refused = run(*common, image.parent, "--out", tmp_path / "found.png")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "names one picture, and there are 2 images" in refused.err
    shutil.copy(image, tmp_path / "mine.png")
    refused = run(*common, tmp_path / "mine.png", "--out", tmp_path / "mine.png")
    assert (refused.code, "is what is read" in refused.err) == (2, True)
    for read, reason in ((tmp_path / "mine.png", "names a picture"), (common[2], "is what is read")):
        refused = run(*common, tmp_path / "mine.png", "--csv", read)
        assert (refused.code, f"--csv {read} {reason}: name " in refused.err) == (2, True)
    assert (tmp_path / "mine.png").read_bytes() == image.read_bytes()
    (tmp_path / "found.png").mkdir()
    assert run(*common, image.parent, "--out", tmp_path / "found.png").code == 0


def test_images_are_sorted_by_their_verdicts(run, trained, photos, tmp_path):
    shutil.copytree(photos / "plate/test", tmp_path / "in")
    common = ("predict", "--model", trained / "ok/model.safetensors", tmp_path / "in", "--sort", tmp_path / "in/sorted")
    for threshold in (0, 1e6, None):
        options = () if threshold is None else ("--threshold", threshold)
        lines = [json.loads(line) for line in run(*common, *options).out.splitlines()]
        assert len(lines) == 14  # without what was sorted before
        links = [path for path in (tmp_path / "in/sorted").rglob("*") if not path.is_dir()]
        assert len(links) == 14
        assert {str(link.readlink()): link.parents[1].name for link in links} == {
            line["path"]: line["verdict"] for line in lines
        }
        assert all(line["sorted"] in map(str, links) for line in lines)


def test_sorting_never_touches_other_files(run, trained, photos, tmp_path, monkeypatch):
    model = trained / "ok/model.safetensors"
    mine = tmp_path / "anomalous/000.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    common = ("predict", "--model", model, photos / "plate/test/stain", "--sort", tmp_path, "--threshold", 0)
    result = run(*common)
    assert (result.code, mine.read_text()) == (2, "mine")
    assert "is another file: choose another folder with --sort" in result.err
    assert (tmp_path / "anomalous/001.png").is_symlink()
    monkeypatch.setattr(sorting.Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    mine.unlink()
    for _ in range(2):
        assert run(*common).code == 0
    assert mine.read_bytes() == (photos / "plate/test/stain/000.png").read_bytes()


def test_links_that_are_sorted_again_still_lead_to_the_images(run, trained, photos, tmp_path):
    model = ("predict", "--model", trained / "ok/model.safetensors", "--sort", tmp_path)
    assert run(*model, photos / "plate/test/stain", "--threshold", 1e6).code == 0
    for threshold in (1e6, 0):
        assert run(*model, tmp_path / "normal/000.png", "--threshold", threshold).code == 0
    assert (tmp_path / "anomalous/000.png").readlink() == photos / "plate/test/stain/000.png"
    assert not (tmp_path / "normal/000.png").is_symlink()
    other = run(*model, photos / "plate/test/blur", "--threshold", 1e6)
    assert other.code == 2
    assert other.err.count("is a link to another image: choose another folder with --sort") >= 2
    assert (tmp_path / "anomalous/000.png").readlink() == photos / "plate/test/stain/000.png"


def test_a_folder_that_refuses_links_costs_no_other_image(run, trained, photos, tmp_path, monkeypatch):
    common = ("predict", "--model", trained / "ok/model.safetensors", "--sort", tmp_path, photos / "plate/test/stain")
    assert run(*common, "--threshold", 1e6).code == 0
    unlink = sorting.Path.unlink
    monkeypatch.setattr(
        sorting.Path, "unlink", lambda path: os.unlink(tmp_path / "nowhere") if path.stem == "000" else unlink(path)
    )
    result = run(*common, "--threshold", 0)
    first, *others = map(json.loads, result.out.splitlines())
    assert (result.code, first["verdict"], "can't sort" in first["error"]) == (2, "anomalous", True)
    assert len(others) == len([*(tmp_path / "anomalous").iterdir()]) > 0


def test_a_picture_that_fails_costs_no_place_in_the_folder_of_the_verdict(run, trained, photos, tmp_path):
    (tmp_path / "out/000_heatmap.png").mkdir(parents=True)
    common = ("predict", "--model", trained / "ok/model.safetensors", photos / "plate/test/stain", "--threshold", 0)
    result = run(*common, "--out", tmp_path / "out", "--sort", tmp_path / "sorted")
    first, *_ = map(json.loads, result.out.splitlines())
    assert (result.code, "Is a directory" in first["error"]) == (2, True)
    assert (tmp_path / "sorted/anomalous/000.png").is_symlink()


def test_copies_move_with_the_verdict(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sorting.Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    image = photos / "plate/test/stain/000.png"
    for verdict, other in (("normal", "anomalous"), ("anomalous", "normal")):
        path = sorting.sort_image(tmp_path, verdict, image, Path("a/000.png"))
        assert path.read_bytes() == image.read_bytes()
        assert not (tmp_path / other / "a/000.png").exists()
    assert sorting.sort_image(tmp_path, "normal", path, Path("a/000.png")).exists()
    assert path.exists()  # it is the image itself now
    assert image.exists()


def test_a_table_survives_ctrl_c_and_names_what_could_not_be_read(run, trained, photos, tmp_path, monkeypatch):
    shutil.copytree(photos / "plate/test/stain", tmp_path / "in")
    (tmp_path / "in/bad.png").write_bytes(b"bad")
    common = ("predict", "--model", trained / "ok/model.safetensors", "--csv", tmp_path / "t.csv")
    run(*common, tmp_path / "in")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [(row["path"].endswith("bad.png"), bool(row["error"])) for row in rows] == [(False, False)] * 2 + [
        (True, True)
    ]
    (tmp_path / "t.csv").unlink()
    monkeypatch.setattr("padim.cli.results.coloured", lambda line: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*common, tmp_path / "in").code == 130
    assert (tmp_path / "t.csv").exists()
    assert "is a folder: name a file" in run(*common[:3], tmp_path / "in", "--csv", tmp_path).err


def test_the_table_has_a_row_per_image(run, trained, photos, tmp_path):
    common = ("predict", "--model", trained / "ok/model.safetensors", photos / "plate/test")
    result = run(*common, "--csv", tmp_path / "new/table.csv")
    lines = [json.loads(line) for line in result.out.splitlines()]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new/table.csv").read_text())))
    assert [(row["path"], float(row["score"]), row["verdict"]) for row in rows] == [
        (line["path"], line["score"], line["verdict"]) for line in lines
    ]
    assert [int(row["regions"]) for row in rows] == [len(line["regions"]) for line in lines]
    stream = ("predict", "--model", trained / "ok/model.safetensors", "--watch", photos, "--csv", tmp_path / "t.csv")
    assert run(*stream).code == 2


def test_verdicts_are_coloured_on_a_terminal_only(run, trained, photos, monkeypatch):
    common = ("predict", "--model", trained / "ok/model.safetensors", photos / "plate/test/stain/000.png")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = run(*common).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    coloured = run(*common).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in plain
    assert coloured.count("\033[3") == 1
    assert run(*common).out == plain


def test_times_and_pixel_thresholds(run, trained, photos, tmp_path):
    common = ("predict", "--model", trained / "ok/model.safetensors", photos / "plate/test/stain", "--threshold", 1)
    result = run(*common, "--timing", "--out", tmp_path, "--mask")
    for line in map(json.loads, result.out.splitlines()):
        assert list(line["milliseconds"]) == ["read", "network", "gaussians", "pictures"]
        assert all(taken > 0 for taken in line["milliseconds"].values())
        with Image.open(line["mask"]) as mask:
            assert mask.getextrema()[1] == 255  # the pixel threshold is 1, too
    assert result.err.splitlines()[-1].startswith("per image: read ")
    (line, _) = map(json.loads, run(*common, "--pixel-threshold", 1e6, "--out", tmp_path, "--mask").out.splitlines())
    assert (line["verdict"], line["regions"], "milliseconds" in line) == ("anomalous", [], False)
    with Image.open(line["mask"]) as mask:
        assert mask.getbbox() is None
    assert "say where with --out DIR" in run(*common, "--mask").err
