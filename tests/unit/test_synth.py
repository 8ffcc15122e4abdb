from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from padim import PadimError
from padim.data.synth import DEFECTS, SCENES, synthesize, write_category


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (150, 90)], ids=str)
def test_masks_are_exact(kind, defect, size):
    for number in range(3):
        normal, nothing = synthesize(kind, *size, "good", (7, number))
        defective, mask = synthesize(kind, *size, defect, (7, number))
        assert normal.shape == (*size, 3)
        assert not nothing.any()
        changed = (normal != defective).any(axis=2)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.8
        assert 0 < mask.mean() < 0.1


@pytest.mark.parametrize("kind", SCENES)
def test_normal_images_vary_and_come_back_with_their_seed(kind):
    first, again, other = (synthesize(kind, 64, 64, "good", (7, number))[0] for number in (0, 0, 1))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_images_of_an_earlier_call_are_not_mixed_in(tmp_path):
    for count in (3, 3):
        assert len(list(write_category(tmp_path, "texture", 32, 32, count, 1, 1, seed=5))) == count + 6
    with pytest.raises(PadimError, match=r"other images, like .*train/good/002.png"):
        list(write_category(tmp_path, "texture", 32, 32, 2, 1, 1, seed=5))


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    for name, count in (("few", 2), ("more", 4)):
        for _ in write_category(tmp_path / name, "texture", 32, 32, count, count, count, seed=5):
            pass
    paths = sorted(path.relative_to(tmp_path / "few") for path in tmp_path.glob("few/**/*.png"))
    assert len(paths) == 2 + 2 + 5 * 2 * 2
    for path in paths:
        few, more = (np.asarray(Image.open(tmp_path / name / path)) for name in ("few", "more"))
        assert np.array_equal(few, more)
