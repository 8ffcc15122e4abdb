"""Rounding errors against float64: the conditions, the truth and the bounds are those of `docs/numerics.md`."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numerics
import pytest
import torch
from conftest import SMALL
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from oracles import fitted

from padim import Padim, PadimError
from padim.system.device import products


@pytest.mark.parametrize("name", numerics.CONDITIONS)
def test_distances_keep_within_the_bound(name):
    found = numerics.measured(numerics.CONDITIONS[name]())
    errors = found.distances
    assert (errors <= found.bounds).all()
    assert errors.max() > found.bounds.max() / 50, "the bound says nothing"
    assert found.scores.max() <= errors.max() + 1e-6  # an image score is a mean of distances with positive weights


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 100),
    drawn=st.tuples(*[st.integers(1, 20)] * 3),
    spread=st.floats(0, 3),
    offset=st.sampled_from([0, 1, 1000]),
    epsilon=st.floats(-5, -1).map(lambda exponent: 10**exponent),
    seed=st.integers(0, 1000),
)
def test_any_features_keep_within_the_bound(n, drawn, spread, offset, epsilon, seed):
    """The bound is one of first order, so it holds where it is small."""
    scales = [10 ** (spread * torch.linspace(-1, 1, d)[:, None]) for d in drawn]
    train, test = (
        [scale * level + offset for scale, level in zip(scales, numerics.features(images, drawn, seed + part))]
        for part, images in enumerate((n, 3))
    )
    try:
        found = numerics.measured(numerics.Condition(train, test), epsilon)
    except PadimError:
        reject()
    assume(found.bounds.max() < 0.01)
    assert (found.distances <= found.bounds).all()


def test_leaving_out_the_one_image_that_differs():
    """Nearly all of its distance comes from what is left of 1 - c r, here a thousandth."""
    train = numerics.repeated([0] * 19 + [1]).train
    model = numerics.gaussian_of([train])
    found = model.leave_one_out_distances(train, 20, numerics.EPSILON)[:, -1].sqrt()
    others, alone = ([level[:, :, part] for level in train] for part in (slice(19), slice(19, 20)))
    exact = numerics.truth(numerics.Condition(others, alone), numerics.EPSILON)
    assert numerics.relative_error(found.numpy(), exact.distances[:, 0]).max() < 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("level", range(3))
def test_what_is_not_finite_stays_in_its_image_and_at_its_positions(bad, level):
    train, test, _ = numerics.of_images(10)
    model = numerics.gaussian_of([train])
    expected = model.squared_distances(test)
    test[level][-1, 0, 1] = bad
    found = model.squared_distances(test)
    below = torch.zeros_like(found, dtype=torch.bool)
    below[-(len(found) // len(test[level])) :, 1] = True
    assert torch.equal(~found.isfinite(), below)
    assert torch.equal(found[~below], expected[~below])


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_distances_with_a_network_in_half_precision(random_weights, precision, dtype):
    """It rounds after each of its 13 convolutions: random errors add up to sqrt(13) times those of the features."""
    images = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known, unknown = images[:20], images[20:]
    exact, half = (
        fitted(Padim(config, weights=random_weights), [known], calibrate=False)
        for config in (SMALL, dataclasses.replace(SMALL, precision=precision))
    )
    condition = numerics.Condition(exact.features(known), exact.features(unknown))
    expected, _, of_features = numerics.truth(condition, SMALL.epsilon)
    found = half.gaussian.squared_distances(half.features(unknown)).sqrt().numpy()
    bound = 13**0.5 * 4 * numerics.ROUNDOFF[dtype] * of_features.max()
    assert bound / 50 < numerics.relative_error(found, expected).max() < bound


class Gpu(numerics.TensorFloat32):
    """Rounds to TensorFloat-32 what a GPU would round under the current settings."""

    def __init__(self):
        super().__init__(numerics.CONVOLUTIONS | numerics.MATRIX_PRODUCTS)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        convolves = function.overloadpacket in numerics.CONVOLUTIONS
        library = torch.backends.cudnn.conv if convolves else torch.backends.cuda.matmul
        if library.fp32_precision == "tf32":
            return super().__torch_dispatch__(function, types, args, kwargs)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def allowing_tf32():
    """Products in TF32 are allowed, as a program around the package may do it; torch allows convolutions by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="asks for the settings of torch 2.9")
def test_neither_fit_nor_score_compute_in_tf32(random_weights, allowing_tf32):
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = fitted(Padim(SMALL, weights=random_weights), [images]).score(images)
    with Gpu():
        found = fitted(Padim(SMALL, weights=random_weights), [images]).score(images)
    assert torch.equal(found.maps, expected.maps)


def allowed():
    """What torch may round products and convolutions to on a GPU."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="asks for the settings of torch 2.9")
@pytest.mark.parametrize("order", [("tf32", "fp32"), ("fp32", "tf32"), ("fp32", "fp32")])
def test_one_thread_does_not_take_another_ones_settings_away(order, allowing_tf32):
    """The second thread is within when the first one leaves; while one of them wants exact products, both have them."""
    first, last = ({"tf32": ("tf32", "tf32"), "fp32": ("ieee", "ieee")}[precision] for precision in order)
    before = allowed()
    inside, left = threading.Event(), threading.Event()

    def second():
        with products(order[1]):
            inside.set()
            assert left.wait(30)
            return allowed()

    with ThreadPoolExecutor(1) as pool:
        with products(order[0]):
            assert allowed() == first
            found = pool.submit(second)
            assert inside.wait(30)
            assert allowed() == ("ieee", "ieee")
        left.set()
        assert found.result() == last
    assert allowed() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="asks for the settings of torch 2.9")
def test_the_innermost_wish_of_a_thread_counts(allowing_tf32):
    before = allowed()
    with products("fp32"):
        with products("tf32"):
            assert allowed() == ("tf32", "tf32")
        assert allowed() == ("ieee", "ieee")
    assert allowed() == before


def test_why_tf32_is_kept_out():
    """With TF32, the same Gaussians have errors of more than a hundred times the bound for float32."""
    with numerics.TensorFloat32(numerics.MATRIX_PRODUCTS):
        found = numerics.measured(numerics.of_images(60))
    assert found.distances.max() > 100 * found.bounds.max()
