"""The layouts of data sets, each made of empty files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from padim import PadimError
from padim.data.images import read_mask
from padim.data.items import Item
from padim.data.layouts import categories, find_category, find_mask, plain_category
from padim.errors import ImageError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_mvtec_ad(data_root):
    assert categories(data_root) == ["object", "texture"]
    category = find_category(data_root, "texture")
    assert [item.path.name for item in category.train] == [f"{number:03}.png" for number in range(8)]
    assert not any(item.anomalous or item.mask for item in category.train)
    assert len(category.test) == 4 + 5 * 2
    assert [item.defect for item in category.test] == sorted(item.defect for item in category.test)
    for item in category.test:
        assert item.anomalous == (item.defect != "good")
        expected = data_root / "texture/ground_truth" / item.defect / f"{item.path.stem}_mask.png"
        assert item.mask == (expected if item.anomalous else None)


def test_btad(tmp_path):
    make(tmp_path, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp", "01/ground_truth/ko/2.png")
    assert categories(tmp_path) == ["01"]
    category = find_category(tmp_path, "01")
    assert category.train == [Item(tmp_path / "01/train/ok/0.bmp", "good")]
    assert category.test == [
        Item(tmp_path / "01/test/ko/2.bmp", "ko", tmp_path / "01/ground_truth/ko/2.png"),
        Item(tmp_path / "01/test/ok/1.bmp", "good"),
    ]


def test_mvtec_3d_ad(tmp_path):
    make(tmp_path, *(f"bagel/train/good/{kind}" for kind in ("rgb/0.png", "xyz/0.tiff")))
    make(tmp_path, *(f"bagel/test/{kind}" for kind in ("hole/rgb/0.png", "hole/gt/0.png", "hole/xyz/0.tiff")))
    make(tmp_path, *(f"bagel/test/good/{kind}" for kind in ("rgb/0.png", "gt/0.png", "xyz/0.tiff")))
    category = find_category(tmp_path, "bagel")
    assert category.train == [Item(tmp_path / "bagel/train/good/rgb/0.png", "good")]
    assert category.test == [
        Item(tmp_path / "bagel/test/good/rgb/0.png", "good"),
        Item(tmp_path / "bagel/test/hole/rgb/0.png", "hole", tmp_path / "bagel/test/hole/gt/0.png"),
    ]


@pytest.fixture
def campus(tmp_path):
    """Two cameras: a training video each, and one of three frames to test on, the second of which is anomalous."""
    for camera in ("01", "13"):
        make(tmp_path, *(f"training/frames/{camera}_001/{number:03}.jpg" for number in range(2)))
        make(tmp_path, *(f"testing/frames/{camera}_0014/{number:03}.jpg" for number in range(3)))
        for kind, values in (
            ("test_frame_mask", np.array([0, 1, 0], dtype=np.int8)),
            ("test_pixel_mask", np.eye(3, dtype=np.uint8)[[0, 1, 2]][:, None]),
        ):
            (tmp_path / "testing" / kind).mkdir(exist_ok=True)
            np.save(tmp_path / f"testing/{kind}/{camera}_0014.npy", values)
    return tmp_path


def test_shanghaitech_campus(campus):
    assert categories(campus) == ["01", "13"]
    category = find_category(campus, "13")
    assert category.train == [Item(campus / f"training/frames/13_001/{number:03}.jpg", "good") for number in range(2)]
    frames, masks = campus / "testing/frames/13_0014", campus / "testing/test_pixel_mask/13_0014.npy"
    assert category.test == [
        Item(frames / "000.jpg", "good"),
        Item(frames / "001.jpg", "anomaly", masks, 1),
        Item(frames / "002.jpg", "good"),
    ]
    assert np.array_equal(np.asarray(read_mask(masks, 1)), [[0, 255, 0]])
    with pytest.raises(ImageError, match="can't read mask 7 in"):
        read_mask(masks, 7)
    with pytest.raises(ImageError, match="can't read mask 0 in"):
        read_mask(campus / "nowhere.npy", 0)


@pytest.mark.parametrize("labels", [np.zeros(2), np.zeros((3, 1), dtype=int), None, np.zeros(2, dtype=int)])
def test_labels_that_fit_no_video_are_refused(campus, labels):
    path = campus / "testing/test_frame_mask/13_0014.npy"
    path.write_bytes(b"bad") if labels is None else np.save(path, labels)
    with pytest.raises(PadimError, match="13_0014"):
        find_category(campus, "13")
    assert len(find_category(campus, "01").test) == 3


VISA = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0836.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
candle,test,normal,candle/Data/Images/Normal/0451.JPG,
pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,
"""


def test_visa(tmp_path):
    make(tmp_path, "split_csv/1cls.csv")
    (tmp_path / "split_csv/1cls.csv").write_text(VISA)
    assert categories(tmp_path) == ["candle", "pcb1"]
    category, images = find_category(tmp_path, "candle"), tmp_path / "candle/Data/Images"
    assert category.train == [Item(images / "Normal/0836.JPG", "good")]
    mask = tmp_path / "candle/Data/Masks/Anomaly/000.png"
    assert category.test == [
        Item(images / "Anomaly/000.JPG", "anomaly", mask),
        Item(images / "Normal/0451.JPG", "good"),
    ]
    with pytest.raises(PadimError, match=r"no category 'cap' .*there: candle, pcb1"):
        find_category(tmp_path, "cap")


@pytest.mark.parametrize("text", ["", "object,split\na,b\n", "\0", "x" * 200_000, "object,split,label,image\na,b\n"])
def test_a_list_that_is_not_visas_is_refused(tmp_path, text):
    make(tmp_path, "split_csv/1cls.csv")
    (tmp_path / "split_csv/1cls.csv").write_text(text)
    with pytest.raises(PadimError, match=r"1cls\.csv"):
        categories(tmp_path)


def test_folders_of_any_name(tmp_path):
    make(tmp_path, "ok/a.jpg", "ok/line 2/b.TIFF", "ok/notes.txt", "fresh/c.png", "bad/d.png", "bad/dent/e.png")
    make(tmp_path, "masks/d.png", "masks/dent/e_mask.bmp")
    category = plain_category("cap", *(tmp_path / name for name in ("ok", "fresh", "bad", "masks")))
    assert category.name == "cap"
    assert [item.path.name for item in category.train] == ["a.jpg", "b.TIFF"]
    assert category.test == [
        Item(tmp_path / "fresh/c.png", "good"),
        Item(tmp_path / "bad/d.png", "defect", tmp_path / "masks/d.png"),
        Item(tmp_path / "bad/dent/e.png", "dent", tmp_path / "masks/dent/e_mask.bmp"),
    ]
    without = plain_category("cap", defect=tmp_path / "bad")
    assert (without.train, [item.mask for item in without.test]) == ([], [None, None])
    for number in range(4):
        folders = [None] * 4
        folders[number] = tmp_path / "nowhere"
        with pytest.raises(PadimError, match=r"there is no folder .*nowhere"):
            plain_category("cap", *folders)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PadimError, match="no images in the folder"):
        plain_category("cap", tmp_path / "empty")


def test_masks_among_the_defective_images_are_not_images(tmp_path):
    make(tmp_path, "bad/d.png", "bad/masks/d.png")
    category = plain_category("cap", defect=tmp_path / "bad", masks=tmp_path / "bad/masks")
    assert category.test == [Item(tmp_path / "bad/d.png", "defect", tmp_path / "bad/masks/d.png")]


def test_a_mask_of_the_same_name_in_another_folder_is_another_images(tmp_path):
    make(tmp_path, "bad/x/0.png", "bad/y/0.png", "masks/x/0.png", "masks/0.png")
    masks = [item.mask for item in plain_category("cap", defect=tmp_path / "bad", masks=tmp_path / "masks").test]
    assert masks == [tmp_path / "masks/x/0.png", tmp_path / "masks/y/0.png"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "a\ud800", "a" * 256])
def test_names_of_no_folder_are_refused(tmp_path, name):
    make(tmp_path, "ok/a.png")
    with pytest.raises(PadimError, match="not the name of a folder"):
        plain_category(name, tmp_path / "ok")


def test_folders_in_folders_are_refused(tmp_path):
    make(tmp_path, "parts/a.png", "parts/bad/b.png")
    with pytest.raises(PadimError, match="folders that are apart"):
        plain_category("cap", tmp_path / "parts", defect=tmp_path / "parts/bad")


def test_a_test_folder_with_a_folder_good_has_defect_types(tmp_path):
    make(tmp_path, "test/good/a.png", "test/dent/b.png", "test/dent/c.png", "masks/dent/b.png", "other/d.png")
    category = plain_category("cap", test=tmp_path / "test", masks=tmp_path / "masks")
    assert [(item.path.name, item.defect) for item in category.test] == [
        ("b.png", "dent"),
        ("c.png", "dent"),
        ("a.png", "good"),
    ]
    masks = [item.mask and item.mask.relative_to(tmp_path) for item in category.test]
    assert masks == [Path("masks/dent/b.png"), Path("masks/dent/c.png"), None]  # what is missing is noticed on reading
    assert [item.mask for item in plain_category("cap", test=tmp_path / "other").test] == [None]


def test_masks_are_found_from_any_working_folder(data_root, monkeypatch):
    monkeypatch.chdir(data_root / "texture/test")
    assert find_mask(Path("stain/000.png")) == data_root / "texture/ground_truth/stain/000_mask.png"


def test_masks_are_matched_by_name_not_by_order(tmp_path):
    make(tmp_path, "b/test/hole/1.jpg", "b/test/hole/2.jpg", "b/ground_truth/hole/2.png")
    masks = [item.mask for item in find_category(tmp_path, "b").test]
    assert masks == [tmp_path / "b/ground_truth/hole/1_mask.png", tmp_path / "b/ground_truth/hole/2.png"]
    assert find_mask(tmp_path / "1.jpg") is None


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (None, "there is no data folder .*PADIM_DATA.*ROOT/CATEGORY/train/good.*mvtec.com"),
        ("other", "no category under .*ROOT/CATEGORY/train/good"),
        ("cap/train/good", "no category 'bottle' .*there: cap"),
        ("bottle/train/good", "no category 'bottle' with images"),
    ],
    ids=["no root", "no category", "another category", "empty"],
)
def test_what_is_missing_is_named_with_the_layout_that_is_expected(tmp_path, folder, message):
    if folder:
        (tmp_path / "root" / folder).mkdir(parents=True)
    with pytest.raises(PadimError, match=message):
        find_category(tmp_path / "root", "bottle")
