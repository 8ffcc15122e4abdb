"""Operating points and defect types against counts by hand, and what is advised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from padim import Config
from padim.calibration import Calibration, Thresholds, shortest
from padim.data.items import Item
from padim.data.transform import Box
from padim.evaluation.category import ImageResult
from padim.evaluation.operating import RATES, advice, defect_types, operating_points

CALIBRATION = Calibration(np.arange(1, 200, dtype=np.float32), None)  # 199 scores, for rates of 0.005 and more


def results(**scores):
    """Images of each defect type with these scores; those of the type `outside` have their defect outside."""
    return [
        ImageResult(Item(Path(f"{number}.png"), defect), score, None, None, Box(0, 0, 1, 1), defect == "outside", None)
        for defect, values in scores.items()
        for number, score in enumerate(values)
    ]


def scorer(calibration, config=None, alignment=None, ignored=None):
    return SimpleNamespace(calibration=calibration, config=config or Config(), alignment=alignment, ignored=ignored)


def test_rates_are_counted():
    images = results(good=[10.0, 180.0, 197.5, 198.5], scratch=[100.0, 191.0, 300.0], dent=[250.0])
    points = {point.false_alarm_rate: point for point in operating_points(images, CALIBRATION)}
    assert tuple(points) == RATES
    assert points[0.001].threshold is None
    assert points[0.001].defects_found is None
    for rate, highest, rejected, found in ((0.01, 198, 1, 2), (0.05, 190, 2, 3), (0.1, 180, 2, 3)):
        point = points[rate]
        assert point.threshold == pytest.approx(highest, rel=1e-6)
        assert highest < point.threshold  # of 199 + 1 images, the share of the rate may score higher
        assert (point.false_alarms, point.defects_found) == (rejected / 4, found / 4)
    assert operating_points(images, None) == []


def test_defect_types_are_counted():
    images = results(good=[1.0, 5.0], scratch=[4.0, 6.0, 7.0], outside=[2.0])
    outside, scratch = defect_types(images, 6.0)
    assert (outside.name, outside.images, outside.found, outside.outside) == ("outside", 1, 0.0, 1)
    assert (scratch.name, scratch.images, scratch.found, scratch.outside) == ("scratch", 3, pytest.approx(2 / 3), 0)
    assert scratch.image_auroc == pytest.approx(roc_auc_score([0, 0, 1, 1, 1], [1, 5, 4, 6, 7]))
    assert defect_types(results(scratch=[1.0]), None)[0].image_auroc is None


def test_advice_is_for_what_is_so():
    few = Calibration(np.arange(1, 51, dtype=np.float32), None)
    low = Thresholds.calibrated(few, 1 / 51)
    poor, good = results(good=[1.0], scratch=[1.0, 2.0, 90.0]), results(good=[1.0], scratch=[900.0])
    assert [sentence[:30] for sentence in advice(poor, low, scorer(few))] == [
        "the threshold rests on the hig",
        "33% of the defects are found: ",
    ]
    assert advice(poor, low, scorer(few))[1].endswith("and --align for parts that lie shifted or turned")
    for blind in ({"ignored": np.ones((2, 2))}, {"alignment": object()}):
        assert "--align" not in advice(poor, low, scorer(few, **blind))[1]
    assert advice(good, Thresholds.calibrated(CALIBRATION, 0.05), scorer(CALIBRATION)) == []
    assert advice(good, Thresholds(), scorer(None)) == []
    outside = results(good=[1.0], outside=[90.0])
    (unseen,) = advice(outside, Thresholds(), scorer(None))
    assert unseen == "1 of 1 defects lie outside what the model sees: --size in training crops nothing"
    (unseen,) = advice(outside, Thresholds(), scorer(None, Config(resize=(64, 64), crop=()), ignored=np.ones((2, 2))))
    assert unseen == "1 of 1 defects lie outside what the model sees, or in what it ignores"


@given(st.floats(width=32, min_value=0, max_value=2**20))
def test_short_scores_are_the_same_float32(value):
    number = np.float32(value)
    assert np.float32(shortest(number)) == number
    assert len(repr(shortest(number))) <= 16
    above = np.nextafter(number, np.float32(np.inf))
    assert not np.isfinite(above) or shortest(number) < shortest(above)
