"""padim-data check, and folders of one's own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

PROTOCOL = ("--resize", "64", "--crop", "64", "--channels", "20", "--batch-size", "4")


@pytest.fixture
def copy(data_root, tmp_path):
    """A copy of the category texture under the name of one of MVTec AD's."""
    shutil.copytree(data_root / "texture", tmp_path / "data/tile")
    return tmp_path / "data"


# padim-data check


def test_check_of_a_whole_copy(run, data_root):
    result = run("data", "check", data_root)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[1].split() == ["object", "8", "4", "10", "10", "64", "x", "64", "0"]


def test_check_names_what_is_wrong(run, copy):
    tile = copy / "tile"
    (tile / "train/good/003.png").write_bytes(b"bad")
    (tile / "ground_truth/stain/001_mask.png").unlink()
    Image.new("L", (64, 64)).save(tile / "ground_truth/blur/000_mask.png")
    Image.new("L", (64, 64), 255).save(tile / "ground_truth/blur/099_mask.png")
    Image.new("L", (32, 64), 255).save(tile / "ground_truth/tint/000_mask.png")
    result = run("data", "check", copy)
    assert result.code == 1
    for text in (
        f"can't read the image {tile}/train/good/003.png",
        f"can't read the image {tile}/ground_truth/stain/001_mask.png",
        f"{tile}/ground_truth/blur/000_mask.png: marks nothing",
        f"{tile}/ground_truth/blur/099_mask.png: a mask without an image",
        f"{tile}/ground_truth/tint/000_mask.png: 32 x 64 pixels, another size than its image",
        "tile: 8 training images, expected 230",
        "tile: 2 test images of blur, expected 0",
        "tile: 0 masks of oil, expected 18",
        "tile: 0 images of 840 x 840 pixels, expected 21",
        "not there: bottle, cable,",
    ):
        assert text in result.out
    report = json.loads(run("data", "check", copy, "--json").out)
    assert (report["train"], report["test"]["good"], report["masks"]["stain"]) == (8, 4, 1)
    assert all(problem in result.out for problem in report["problems"])


def test_check_says_what_is_missing(run, tmp_path):
    result = run("data", "check", tmp_path / "nowhere")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


# Folders of one's own


def test_folders_of_ones_own_give_the_figures_of_the_layout(run, data_root, weights_file, tmp_path):
    texture = data_root / "texture"
    parts = tmp_path / "my parts"
    (parts / "bad").mkdir(parents=True)
    for defect in ("blur", "stain"):
        shutil.copytree(texture / "test" / defect, parts / "bad" / defect)
        shutil.copytree(texture / "ground_truth" / defect, parts / "masks" / defect)
    shutil.copytree(texture / "train/good", parts / "ok")
    common = ("--weights", weights_file, "--output", tmp_path / "runs")
    folders = ("--test", texture / "test/good", "--defect", parts / "bad")
    trained = run("train", "--normal", parts / "ok", *common, *PROTOCOL, "--json", "--eval", *folders)
    assert trained.code == 0
    summary, figures = map(json.loads, trained.out.splitlines())
    assert (summary["category"], summary["images"]) == ("ok", 8)
    assert (figures["images"], figures["defective"], figures["pixel_auroc"]) == (8, 4, None)

    again = run("eval", "--output", tmp_path / "runs", *folders, "--masks", parts / "masks", "--json")
    figures = json.loads(again.out)
    assert (again.code, figures["unmasked"]) == (0, 0)
    assert 0 < figures["pixel_auroc"] <= 1

    only_good = run("eval", "--output", tmp_path / "runs", "--test", texture / "test/good", "--json")
    assert (only_good.code, json.loads(only_good.out)["image_auroc"]) == (0, None)

    for folders, message in (
        (("--normal", parts / "ok", "--defect", parts / "bad"), "are for --eval"),
        (("--normal", parts, "--eval", "--defect", parts / "bad"), "take folders that are apart"),
        (("--normal", parts / "ok", "--category", "../out"), "not the name of a folder"),
    ):
        refused = run("train", *folders, *common)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err
    refused = run("train", "--defect", parts / "bad", *common)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "pass --normal DIR" in refused.err


# ShanghaiTech Campus


def test_cameras_are_trained_and_evaluated(run, data_root, weights_file, tmp_path):
    """A texture as a camera's frames: the masks of a video lie in one file."""
    texture, masks, labels = data_root / "texture", [], []
    shutil.copytree(texture / "train/good", tmp_path / "stc/training/frames/01_001")
    frames = tmp_path / "stc/testing/frames/01_0014"
    frames.mkdir(parents=True)
    for number, path in enumerate(sorted((texture / "test").glob("*/*.png"))):
        shutil.copy(path, frames / f"{number:03}.png")
        mask = texture / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        masks.append(np.asarray(Image.open(mask)) if mask.exists() else np.zeros((64, 64), dtype=np.uint8))
        labels.append(mask.exists())
    for kind, values in (("test_frame_mask", np.array(labels, dtype=np.int8)), ("test_pixel_mask", np.stack(masks))):
        (tmp_path / "stc/testing" / kind).mkdir()
        np.save(tmp_path / f"stc/testing/{kind}/01_0014.npy", values)
    protocol = ("--weights", weights_file, *PROTOCOL, "--output", tmp_path, "--eval", "--json")
    found, expected = (
        json.loads(run("train", "--category", name, "--data", root, *protocol).out.splitlines()[1])
        for name, root in (("01", tmp_path / "stc"), ("texture", data_root))
    )
    for key in ("images", "defective", "unmasked", "image_auroc", "pixel_auroc", "aupro"):
        assert found[key] == expected[key]
    assert run("data", "check", tmp_path / "stc").code == 0
