"""padim-data check on folders of one's own and on data roots: what it says of images with known faults."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

KINDS = ("proportions", "duplicates", "uniform", "exposure")


def picture(path, mean=120.0, deviation=20.0, size=(40, 30)):
    """Write noise of a mean and deviation that are no other image's, but of exactly these grey values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size[0] * size[1], mean + deviation)
    values[::2] = mean - deviation
    np.random.default_rng(list(str(path).encode())).shuffle(values)
    Image.fromarray(values.reshape(size[::-1]).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Folders without any fault: 8 images to learn from, 4 normal and 2 defective ones with masks to test on."""
    for number in range(8):
        picture(tmp_path / f"ok/{number}.png", mean=118 + number % 5)
    for number in range(4):
        picture(tmp_path / f"later/{number}.png")
    for number in range(2):
        picture(tmp_path / f"broken/{number}.png")
        mask = Image.new("L", (40, 30))
        mask.putpixel((number, 3), 255)
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / f"masks/{number}_mask.png")
    return tmp_path


@pytest.fixture
def check(run, photos):
    """Check the folders; gives the report, once it agrees with the exit code."""

    def call(*options):
        result = run("data", "check", "--normal", photos / "ok", "--test", photos / "later", *options, "--json")
        assert result.err == ""
        report = json.loads(result.out)
        assert result.code == (1 if report["problems"] else 0)
        assert tuple(report["remarks"]) == KINDS
        return report

    return call


def remarks(report):
    """The remarks of the kinds that have some."""
    return {kind: lines for kind, lines in report["remarks"].items() if lines}


# Folders of one's own


def test_faultless_folders(check, photos):
    report = check("--defect", photos / "broken", "--masks", photos / "masks")
    assert (report["category"], report["train"]) == ("ok", 8)
    assert (report["test"], report["masks"]) == ({"good": 4, "defect": 2}, {"defect": 2})
    assert report["sizes"] == {"40 x 30": 14}
    assert (report["problems"], remarks(report)) == ([], {})


def test_normal_images_alone_are_no_problem(run, photos):
    result = run("data", "check", "--normal", photos / "ok", "--category", "bottle")
    assert (result.code, result.err) == (0, "")
    table = result.out.splitlines()  # and nothing of the published bottle
    assert len(table) == 2
    assert table[1].split() == ["bottle", "8", "0", "0", "0", "40", "x", "30", "0"]


def test_masks_are_missed_only_where_there_are_some(check, photos):
    assert check("--defect", photos / "broken")["problems"] == []
    (photos / "masks/1_mask.png").rename(photos / "masks/7.png")
    problems = check("--defect", photos / "broken", "--masks", photos / "masks")["problems"]
    assert len(problems) == 2
    assert problems[0].startswith(f"can't read the image {photos}/masks/1.png")
    assert problems[1] == f"{photos}/masks/7.png: a mask without an image"


def test_masks_named_by_a_relative_path(run, photos, monkeypatch):
    monkeypatch.chdir(photos)
    result = run("data", "check", "--normal", "ok", "--defect", "broken", "--masks", "masks")
    assert (result.code, len(result.out.splitlines())) == (0, 2)


def test_unreadable_images_and_a_single_one(check, photos):
    (photos / "later/0.png").write_bytes((photos / "later/0.png").read_bytes()[:200])
    for number in range(1, 8):
        (photos / f"ok/{number}.png").unlink()
    problems = check()["problems"]
    assert len(problems) == 2
    assert problems[0].startswith(f"can't read the image {photos}/later/0.png: ")
    assert problems[1] == "ok: 1 training images, at least two are needed"


def test_usage_errors_are_one_line(run, photos, data_root):
    normal = ("--normal", photos / "ok")
    for arguments, message in (
        ((), "Pass ROOT, the folder of the categories, or --normal DIR"),
        ((data_root, *normal), "not both"),
        (("--test", photos / "later"), "pass --normal DIR"),
        ((*normal, "--category", "a", "b"), "--category NAME for one name at most"),
        ((*normal, "--category", "../a"), "not the name of a folder"),
        ((*normal, "--masks", photos / "nowhere"), f"there is no folder {photos}/nowhere"),
        ((*normal, "--defect", photos / "ok"), "take folders that are apart"),
    ):
        result = run("data", "check", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), arguments
        assert message in result.err


# Duplicates


def test_a_training_image_among_the_test_images_is_a_problem(check, photos):
    Image.open(photos / "ok/3.png").convert("RGB").save(photos / "later/z.bmp")  # another file, the same pixels
    report = check()
    assert report["problems"] == [f"{photos}/later/z.bmp: the same pixels as the training image {photos}/ok/3.png"]
    assert remarks(report) == {}


def test_copies_within_a_folder_are_remarks(check, photos):
    for source, copy in (("ok/3.png", "ok/a.png"), ("ok/3.png", "ok/b.png"), ("later/1.png", "broken/9.png")):
        shutil.copy(photos / source, photos / copy)
    report = check("--defect", photos / "broken")
    assert report["problems"] == []
    assert remarks(report) == {
        "duplicates": [
            f"{photos}/ok/a.png: the same pixels as {photos}/ok/3.png",
            f"{photos}/ok/b.png: the same pixels as {photos}/ok/3.png",
            f"{photos}/broken/9.png: the same pixels as {photos}/later/1.png",
        ]
    }


def test_one_pixel_or_another_shape_makes_another_image(check, photos):
    other = Image.open(photos / "ok/3.png").convert("RGB")
    red, green, blue = other.getpixel((7, 7))
    other.putpixel((7, 7), (red, green, blue + 1))  # of the same grey value
    other.save(photos / "later/pixel.png")
    with Image.open(photos / "ok/3.png") as image:
        Image.frombytes("L", (30, 40), image.tobytes()).save(photos / "later/shape.png")
    report = check()
    assert report["problems"] == []
    assert list(remarks(report)) == ["proportions"]


# Proportions, structure and exposure


def test_proportions(check, photos):
    picture(photos / "ok/double.png", size=(80, 60))
    picture(photos / "ok/cut.png", size=(103, 78))  # less than 1 % off
    assert remarks(check()) == {}
    picture(photos / "ok/wide.png", size=(42, 30))
    picture(photos / "later/wider.png", size=(48, 30))
    assert remarks(check()) == {
        "proportions": [
            f"{photos}/later/wider.png: 48 x 30 pixels, width/height 1.6, where 13 of 16 images have 1.33;"
            " all are resized to one size"
        ]
    }


@pytest.mark.parametrize("width", [103, 104])
def test_proportions_differ_from_three_percent_on(width, run, tmp_path):
    for number in range(3):
        picture(tmp_path / f"ok/{number}.png", size=(100, 100))
    picture(tmp_path / "ok/odd.png", size=(100, width))
    report = json.loads(run("data", "check", "--normal", tmp_path / "ok", "--json").out)
    assert len(report["remarks"]["proportions"]) == (width > 103)


def test_images_with_hardly_any_structure(check, photos):
    picture(photos / "ok/noise.png", deviation=1)
    picture(photos / "later/flat.png", deviation=0)
    picture(photos / "later/faint.png", deviation=3)
    text = "hardly any structure, the grey values have a standard deviation of"
    assert remarks(check()) == {
        "uniform": [f"{photos}/ok/noise.png: {text} 1.0", f"{photos}/later/flat.png: {text} 0.0"]
    }


def test_exposures_that_stand_out_from_equal_ones(check, photos):
    picture(photos / "ok/dim.png", mean=105)  # further off than any other, and still a trifle
    assert remarks(check()) == {}
    picture(photos / "ok/dark.png", mean=60)
    picture(photos / "later/bright.png", mean=200)
    text = "in the training images usually 119"
    assert remarks(check()) == {
        "exposure": [
            f"{photos}/ok/dark.png: the mean grey value is 60, {text}",
            f"{photos}/later/bright.png: the mean grey value is 200, {text}",
        ]
    }


def test_exposures_that_vary_anyway(check, photos):
    for number in range(20):
        picture(photos / f"ok/more{number}.png", mean=80 + 4 * number)  # a normal spread of 30 grey values
    picture(photos / "later/bright.png", mean=200)
    assert remarks(check()) == {}


# The text, and data roots


def test_long_lists_are_cut_in_the_text_only(run, check, photos):
    for number in range(7):
        shutil.copy(photos / "ok/3.png", photos / f"ok/copy{number}.png")
    picture(photos / "ok/flat.png", deviation=0)
    result = run("data", "check", "--normal", photos / "ok")
    assert result.code == 0
    lines = result.out.splitlines()[2:]
    shown = [f"remark: {photos}/ok/copy{number}.png: the same pixels as {photos}/ok/3.png" for number in range(5)]
    assert lines[:-1] == [*shown, "remark: and 2 more"]
    assert lines[-1].startswith(f"remark: {photos}/ok/flat.png: hardly any structure")
    assert len(check()["remarks"]["duplicates"]) == 7


def test_a_data_root_has_problems_and_remarks_too(run, data_root, tmp_path):
    texture = tmp_path / "texture"
    shutil.copytree(data_root / "texture", texture)
    shutil.copy(texture / "train/good/000.png", texture / "test/good/099.png")
    shutil.copy(texture / "train/good/000.png", texture / "train/good/099.png")
    result = run("data", "check", tmp_path)
    assert result.code == 1
    original = texture / "train/good/000.png"
    assert result.out.splitlines()[2:] == [
        f"{texture}/test/good/099.png: the same pixels as the training image {original}",
        f"remark: {texture}/train/good/099.png: the same pixels as {original}",
    ]


def test_a_data_root_needs_masks_and_test_images(run, photos, tmp_path):
    shutil.copytree(photos / "ok", tmp_path / "data/cap/train/good")
    shutil.copytree(photos / "broken", tmp_path / "data/cap/test/broken")
    result = run("data", "check", tmp_path / "data")
    assert result.code == 1
    assert result.out.splitlines()[2:] == [
        *(f"{tmp_path}/data/cap/test/broken/{number}.png: no mask" for number in range(2)),
        "cap: no normal test images",
    ]


def test_an_image_listed_twice_is_no_duplicate_of_itself(run, tmp_path):
    images = [picture(tmp_path / f"cap/{number}.png").relative_to(tmp_path) for number in range(3)]
    rows = [f"cap,train,normal,{image}," for image in images] + [f"cap,test,normal,{images[0]},"]
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]))
    report = json.loads(run("data", "check", tmp_path, "--json").out)
    assert report["problems"] == [f"{tmp_path}/cap/0.png: listed 2 times", "cap: no defective test images"]
    assert remarks(report) == {}


@pytest.mark.slow
def test_normal_images_of_mvtec_give_no_remark(run, shared):
    bottle = shared / "data/mvtec/bottle"
    result = run("data", "check", "--normal", bottle / "train/good", "--test", bottle / "test/good", "--json")
    report = json.loads(result.out)
    assert (result.code, report["train"], report["test"]) == (0, 209, {"good": 20})
    assert (report["problems"], remarks(report), report["advice"]) == ([], {}, None)
