"""The whole model against the plain form, and its file against everything that can befall a file."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import activations, factors_of, fitted, library_network
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.spatial.distance import mahalanobis

from padim import Config, Padim, PadimError
from padim.deploy.export import export_onnx
from padim.deploy.runtime import Runtime
from padim.detectors.batches import as_pixels
from padim.detectors.options import FitOptions
from padim.embedding import draw_channels, embedding_concat
from padim.estimate import estimate


def images_like(n, seed, size=(64, 64)):
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randint(0, 200, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    return (scene + torch.randint(0, 56, (n, 3, *size), generator=generator)).to(torch.uint8)


@pytest.fixture(scope="module")
def model(random_weights):
    return fitted(Padim(SMALL, weights=random_weights), images_like(12, seed=1).split(4), "parts")


@pytest.fixture
def model_file(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def plain_maps(config, train, test):
    """PaDiM as the paper writes it, in float64 from the maps of the layers on."""
    train, test = (embedding_concat(levels).double().numpy() for levels in (train, test))
    channels = draw_channels(train.shape[1], config.channels, config.seed)
    train, test = train[:, channels], test[:, channels]
    distances = np.empty((len(test), *train.shape[2:]))
    for y, x in np.ndindex(*train.shape[2:]):
        covariance = np.cov(train[:, :, y, x], rowvar=False) + config.epsilon * np.eye(len(channels))
        mean, inverse = train[:, :, y, x].mean(axis=0), np.linalg.inv(covariance)
        distances[:, y, x] = [mahalanobis(image[:, y, x], mean, inverse) for image in test]
    maps = F.interpolate(torch.from_numpy(distances)[:, None], size=config.image_size, mode=config.upsampling)
    return np.stack([scipy.ndimage.gaussian_filter(image, config.sigma) for image in maps[:, 0].numpy()])


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, layers=("layer1", "layer2", "layer3", "layer4")),
        replace(SMALL, layers=("layer2", "layer3"), channels=30, upsampling="bicubic"),
        replace(SMALL, layers=("layer3",), epsilon=0.1, sigma=1.0),
        replace(SMALL, resize=(96, 80), crop=(32, 64)),
    ],
    ids=["three levels", "four levels", "two levels", "one level", "not square"],
)
def test_maps_and_scores_are_those_of_the_paper(config, random_weights):
    train, test = (images_like(n, n, config.image_size) for n in (12, 3))
    scores = fitted(Padim(config, weights=random_weights), train.split(5)).score(test)
    backbone = Padim(config, weights=random_weights).backbone
    with torch.no_grad():
        expected = plain_maps(config, backbone(train), backbone(test))
    np.testing.assert_allclose(scores.maps, expected, rtol=1e-4)
    np.testing.assert_allclose(scores.images, expected.max(axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "layers"),
    {
        "torchvision:resnet50": ("layer1", "layer2.0", "layer3"),
        "torchvision:efficientnet_b0": ("features.2", "features.3", "features.5"),
        "torchvision:mobilenet_v3_large": ("features.3", "features.6", "features.12"),
        "torchvision:convnext_tiny": ("features.1", "features.3"),
        "torchvision:regnet_y_400mf": ("trunk_output.block1", "trunk_output.block2"),
        "timm:resnetblur18": ("layer1", "layer2"),  # has filters beside its weights
        "timm:vit_small_patch14_dinov2": ("blocks.3", "blocks.1"),  # one grid in any order
    }.items(),
)
def test_networks_of_libraries_are_backbones(backbone, layers):
    side = 56 if "patch14" in backbone else 64
    config = replace(SMALL, backbone=backbone, layers=layers, channels=10, resize=(side, side), crop=(), epsilon=0.1)
    network = library_network(backbone)
    train, test = (images_like(n, n, config.image_size) for n in (6, 2))
    scores = fitted(Padim(config, weights=network.state_dict()), train.split(4)).score(test)

    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)[:, :, None, None]
    levels = activations(network, layers, (torch.cat([train, test]) / 255 - mean) / std)
    if levels[0].ndim == 3:  # a class token, and 4 x 4 patches
        levels = [level[:, 1:].reshape(8, 4, 4, -1).permute(0, 3, 1, 2) for level in levels]
    expected = plain_maps(config, [level[:6] for level in levels], [level[6:] for level in levels])
    np.testing.assert_allclose(scores.maps, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "layers"), {"timm:test_vit": ("blocks.1", "blocks.2"), "timm:resnetblur18": ("layer2",)}.items()
)
def test_a_model_file_has_what_a_network_of_a_library_needs(backbone, layers, tmp_path):
    config = replace(SMALL, backbone=backbone, layers=layers)
    model = fitted(Padim(config, weights=library_network(backbone).state_dict()), [images_like(5, 1)])
    path, test = tmp_path / "model.safetensors", images_like(2, 2)
    model.save(path)
    before = torch.get_rng_state()
    assert torch.equal(Padim.load(path).score(test).maps, model.score(test).maps)
    assert torch.equal(torch.get_rng_state(), before)  # though networks are built with random weights
    assert 0 < path.stat().st_size - estimate(config, images=5).model < 40_000


def test_the_same_fit_gives_the_same_bits(model, random_weights, tmp_path):
    again = fitted(Padim(SMALL, weights=random_weights), images_like(12, seed=1).split(4), "parts")
    model.save(tmp_path / "one")
    again.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_level_that_got_no_channels_is_no_obstacle(random_weights):
    few = Padim(replace(SMALL, channels=1), weights=random_weights)
    scores = fitted(few, [images_like(5, seed=1)]).score(images_like(2, seed=2))
    assert scores.maps.isfinite().all()


@pytest.mark.parametrize(
    ("size", "message"),
    [((230, 224), "instead of 230 take 224 or 240"), ((224, 100), "instead of 100 take 96 or 112")],
)
def test_sizes_whose_grids_do_not_nest_are_refused_with_the_nearest_that_do(size, message, random_weights):
    with pytest.raises(PadimError, match=message):
        Padim(Config(resize=size, crop=()), weights=random_weights)


def test_wrong_input_is_refused(model, random_weights, tmp_path):
    unfitted = Padim(SMALL, weights=random_weights)
    with pytest.raises(PadimError, match=r"shape \[2, 3, 32, 32\], expected \[n, 3, 64, 64\]"):
        model.score(images_like(2, 0, (32, 32)))
    with pytest.raises(PadimError, match="isn't fitted"):
        unfitted.score(images_like(1, 0))
    with pytest.raises(PadimError, match="isn't fitted"):
        unfitted.save(tmp_path / "model.safetensors")
    for batches in ([], [images_like(1, 0)]):
        with pytest.raises(PadimError, match="at least two training images"):
            unfitted.fit(batches)


def test_floats_are_in_0_to_1_in_any_precision(model):
    images = images_like(3, 0)
    for floats in (images.double() / 255, images.float() / 255):
        torch.testing.assert_close(model.score(floats).maps, model.score(images).maps, rtol=1e-3, atol=1e-3)
    for others in (images.int() * 257, images.to(torch.int8), images > 100):
        with pytest.raises(PadimError, match=r"images are torch.*: pass torch.uint8, or floats in 0..1"):
            model.score(others)
    pixels = images.permute(0, 2, 3, 1).numpy()
    flipped = model.score_pixels(pixels[:, ::-1]).maps
    np.testing.assert_array_equal(flipped, model.score_pixels(np.ascontiguousarray(pixels[:, ::-1])).maps)
    with pytest.raises(PadimError, match="divide by 255"):
        model.score(images.float())


def test_neither_autocast_nor_reduced_products_around_the_caller_change_scores(model):
    images = images_like(3, 0)
    expected = model.score(images)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = model.score(images)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.maps, expected.maps)


def test_scores_can_be_changed_in_place(model):
    model.score(images_like(1, 0)).maps.sub_(1)


def test_half_storage_halves_the_factors_and_keeps_three_digits(model, tmp_path):
    sizes = {}
    for storage in ("fp32", "fp16"):
        model.save(tmp_path / storage, FitOptions(embed_backbone=False, storage=storage))
        sizes[storage] = (tmp_path / storage).stat().st_size
    factors = 4 * sum(block.numel() for block in factors_of(model.gaussian))
    assert sizes["fp32"] - sizes["fp16"] == pytest.approx(factors / 2, rel=0.01)
    model.save(tmp_path / "half", FitOptions(storage="fp16"))
    images = images_like(4, seed=9)
    torch.testing.assert_close(
        Padim.load(tmp_path / "half").score(images).maps, model.score(images).maps, rtol=2e-3, atol=0
    )


def test_a_device_that_is_not_there_is_named(random_weights):
    with pytest.raises(PadimError, match="no device 'cuda:77'"):
        Padim(SMALL, weights=random_weights, device="cuda:77")


def test_features_that_overflow_stop_the_fit(random_weights):
    huge = {**random_weights, "bn1.weight": torch.full((64,), 1e38), "bn1.bias": torch.full((64,), 3e38)}
    with pytest.raises(PadimError, match="not finite"):
        fitted(Padim(SMALL, weights=huge), [images_like(4, 0)])


def test_scores_that_are_not_finite_are_an_error_not_a_result(model):
    with pytest.raises(PadimError, match="scores are not finite"):
        model.score(torch.full((1, 3, 64, 64), torch.nan))


def test_images_that_never_vary(random_weights):
    constant = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    model = fitted(Padim(SMALL, weights=random_weights), [constant])
    assert model.score(constant).images.max() == pytest.approx(0, abs=1e-3)
    assert model.score(images_like(1, seed=1)).images.isfinite().all()


@pytest.mark.parametrize("kind", ["constant", "copies", "pairs"])
def test_training_images_that_are_alike_have_one_verdict_in_every_arithmetic(kind, random_weights, tmp_path):
    """A threshold just above the rounding errors of one arithmetic would lie below those of another."""
    train = {
        "constant": torch.full((8, 3, 64, 64), 100, dtype=torch.uint8),
        "copies": images_like(1, seed=1).repeat(8, 1, 1, 1),
        "pairs": images_like(4, seed=1).repeat(2, 1, 1, 1),
    }[kind]
    model = fitted(Padim(SMALL, weights=random_weights), [train])
    model.save(tmp_path / "model.safetensors")
    export_onnx(model, tmp_path / "model.onnx")
    scorers = [
        Runtime.load(tmp_path / "model.onnx"),
        *(Padim.load(tmp_path / "model.safetensors", precision=name) for name in ("fp32", "bf16", "fp16")),
    ]
    threshold = model.calibration.threshold(0.2)
    different = train[:1].clone()
    different[:, :, 20:40, 20:40] = 255 - different[:, :, 20:40, 20:40]
    for scorer in scorers:
        assert (scorer.score_pixels(as_pixels(train)).images < threshold).all()
        assert (scorer.score_pixels(as_pixels(different)).images > 2 * threshold).all()


# The file


def test_a_model_comes_back_from_its_file_alone(model, model_file):
    again = Padim.load(model_file)
    assert (again.config, again.provenance) == (SMALL, model.provenance)
    assert (again.provenance.category, again.provenance.images) == ("parts", 12)
    test = images_like(3, seed=2)
    for found, expected in zip(again.score(test)[:2], model.score(test)[:2]):
        assert torch.equal(found, expected)


def test_the_file_is_as_documented(model_file):
    with safe_open(model_file, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        metadata = file.metadata()
    ours = {key: shape for key, shape in shapes.items() if not key.startswith("backbone.")}
    d = [ours[f"mean.{level}"][1] for level in range(3)]
    cells = [4 * 4, 8 * 8, 16 * 16]
    assert sum(d) == 20
    expected = {"channels": (20,), "normal.scores": (12,), "normal.pixels": (601,)}
    for i in range(3):
        expected[f"mean.{i}"] = (cells[i], d[i], 1)
        expected |= {f"factor.{i}.{j}": (cells[i], d[i], d[j]) for j in range(i + 1)}
    assert ours == expected
    header = json.loads(metadata["padim"])
    assert header["version"] == 2
    assert Config.from_dict(header["config"]) == SMALL
    assert header["about"]["images"] == 12


def test_without_the_backbone_the_right_weights_are_asked_for(model, random_weights, weights_file, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path, FitOptions(embed_backbone=False))
    assert path.stat().st_size < 2e6
    test = images_like(2, seed=2)
    assert torch.equal(Padim.load(path, weights=weights_file).score(test).maps, model.score(test).maps)
    others = {**random_weights, "bn1.bias": random_weights["bn1.bias"] + 0.1}
    torch.save(others, tmp_path / "others.pth")
    with pytest.raises(PadimError, match=r"model\.safetensors: fitted with other weights .*--weights"):
        Padim.load(path, weights=tmp_path / "others.pth")


def rewritten(path, change):
    """The model file with its tensors and header changed."""
    with safe_open(path, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["padim"])
    del header["sha256"]  # which a hostile writer would get right
    change(tensors, header)
    save_file(tensors, path, {"padim": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: h.update(version=3), "has format version 3, this program reads version 2"),
        (lambda t, h: h.update(config=3), "metadata can't be understood"),
        (lambda t, h: h.update(config={"sed": 1}), "or one of a newer padim: 'sed' is not a field"),
        (lambda t, h: h["about"].update(shift=1), "or one of a newer padim: its metadata can't be understood"),
        (
            lambda t, h: h.update(config=replace(SMALL, channels=21).to_dict()),
            "'channels' is not there as finite int64 of shape",
        ),
        (lambda t, h: h.update(about=[]), "metadata can't be understood"),
        (lambda t, h: h["about"].update(weights_sha256=5), "metadata can't be understood"),
        (lambda t, h: h.pop("about"), "metadata can't be understood"),
        (lambda t, h: t.pop("factor.1.0"), "'factor.1.0' is not there"),
        (
            lambda t, h: t.update({"mean.0": t["mean.0"][:1].clone()}),
            "'mean.0' is not there as finite float32 of shape",
        ),
        (lambda t, h: t["factor.0.0"].fill_(torch.nan), "'factor.0.0' is not there as finite"),
        (
            lambda t, h: t.update({"factor.0.0": t["factor.0.0"].double()}),
            "'factor.0.0' is not there as finite float32 or",
        ),
        (lambda t, h: t.update(channels=t["channels"] + 0.5), "'channels' is not there as finite int64"),
        (lambda t, h: t["factor.0.0"].zero_(), "a factor has a diagonal that is not positive"),
        (lambda t, h: t["normal.scores"].sub_(1e6), "a calibration below 0"),
        (lambda t, h: t["normal.scores"].neg_(), "a calibration that does not ascend"),
        (lambda t, h: t.update({"normal.pixels": t["normal.pixels"].flip(0)}), "a calibration that does not ascend"),
        (lambda t, h: h["about"].update(false_alarm_rate=1.5), "metadata can't be understood"),
        (lambda t, h: t["channels"].fill_(-1), "a damaged model"),
        (lambda t, h: t["backbone.bn1.bias"].add_(1), "fitted with other weights"),
        (lambda t, h: t.pop("backbone.bn1.bias"), "no key 'bn1.bias'"),
    ],
)
def test_a_changed_file_is_refused_with_the_reason(model_file, change, message):
    rewritten(model_file, change)
    with pytest.raises(PadimError, match=message) as error:
        Padim.load(model_file)
    assert str(model_file) in str(error.value)


@pytest.mark.parametrize("name", ["factor.1.0", "mean.2", "normal.scores", "backbone.conv1.weight"])
def test_a_bit_that_was_flipped_is_noticed(model_file, name):
    content = bytearray(model_file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + size])[name]["data_offsets"]
    content[8 + size + (begin + end) // 2] ^= 1
    model_file.write_bytes(content)
    with pytest.raises(PadimError, match=r"is damaged .*: its tensors are not those that were written"):
        Padim.load(model_file)


@pytest.mark.parametrize(
    "change", [lambda path: path.write_bytes(b"?" * path.stat().st_size), lambda path: os.truncate(path, 0)]
)
def test_a_loaded_model_stays_as_it_is_whatever_becomes_of_its_file(change, model, model_file):
    """Overwritten or cut off in place, as `cp` does it, the file would change what is only mapped from it."""
    loaded = Padim.load(model_file)
    change(model_file)
    test = images_like(2, seed=2)
    assert torch.equal(loaded.score(test).maps, model.score(test).maps)
    assert loaded.backbone.weights().keys() == model.backbone.weights().keys()
    assert all(torch.equal(value, model.backbone.weights()[key]) for key, value in loaded.backbone.weights().items())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_anything_else(model, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    model.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 5000, 100, 8, 0]))])
    try:
        Padim.load(path)
    except PadimError as error:
        assert str(path) in str(error)


def test_no_file_and_a_file_of_something_else(weights_file, tmp_path):
    with pytest.raises(PadimError, match=r"there is no model .*nowhere"):
        Padim.load(tmp_path / "nowhere")
    with pytest.raises(PadimError, match="damaged or not a padim model"):
        Padim.load(weights_file)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PadimError, match="is not a padim model: train one"):
        Padim.load(tmp_path / "other.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(model, model_file, monkeypatch):
    before = model_file.read_bytes()

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("padim.storage.tensorfile.save_file", fails)
    with pytest.raises(PadimError, match=r"can't write .*model\.safetensors: No space left"):
        model.save(model_file)
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


@pytest.mark.parametrize("parts", [(12, 20), (2, 30), (31, 1)])
def test_an_updated_model_is_one_of_all_images(random_weights, tmp_path, parts):
    images, others = images_like(32, seed=1), images_like(3, seed=2)
    whole = fitted(Padim(SMALL, weights=random_weights), images.split(4))
    first, second = images.split(parts)
    fitted(Padim(SMALL, weights=random_weights), first.split(4), "parts", keep_moments=True).save(tmp_path / "model")
    model = fitted(Padim.load(tmp_path / "model"), second.split(4), "parts", update=True)
    torch.testing.assert_close(model.score(others).maps, whole.score(others).maps, rtol=1e-5, atol=0)
    model.save(tmp_path / "model")
    again = Padim.load(tmp_path / "model")
    assert again.provenance.images == 32
    assert torch.equal(again.score(others).maps, model.score(others).maps)
    assert len(again.calibration.scores) == (30 if parts[0] == 2 else 32)  # two images have no scores to keep
    fitted(again, [others], update=True)
    assert again.provenance.images == 35


def test_a_failed_update_leaves_the_model_as_it_was(random_weights):
    images = images_like(40, seed=1)
    model = fitted(Padim(SMALL, weights=random_weights), [images[:8]], "parts", keep_moments=True, false_alarm_rate=0.2)
    expected = model.score(images[:2]).maps
    bad = images.float() / 255
    bad[-1] = torch.nan
    with pytest.raises(PadimError, match="not finite"):
        fitted(model, [images[:32], bad], update=True)
    assert (model.moments.count, model.provenance.images) == (8, 8)
    assert torch.equal(model.score(images[:2]).maps, expected)
    fitted(model, [images[8:]], update=True)
    assert (model.provenance.images, model.provenance.category, model.provenance.false_alarm_rate) == (40, "parts", 0.2)


def test_an_update_that_cannot_be_factorised_leaves_the_model_as_it_was(random_weights):
    """Equal images have variances of epsilon alone, which is lost beside those of others."""
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    model = fitted(Padim(replace(SMALL, epsilon=1e-9), weights=random_weights), [grey], keep_moments=True)
    expected, sums = model.score(grey).maps, model.moments.copy()
    with pytest.raises(PadimError, match="epsilon"):
        fitted(model, [images_like(6, seed=1)], update=True)
    assert (model.moments.count, model.provenance.images) == (4, 4)
    assert all(map(torch.equal, model.moments.second[0], sums.second[0]))
    assert torch.equal(model.score(grey).maps, expected)


def test_factors_too_large_for_half_precision_stay_as_they_are(random_weights, tmp_path):
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    model = fitted(Padim(replace(SMALL, epsilon=1e-10), weights=random_weights), [grey])
    model.save(tmp_path / "model", FitOptions(storage="fp16"))
    blocks = zip(Padim.load(tmp_path / "model").gaussian.inverse, model.gaussian.inverse, strict=True)
    assert all(torch.equal(found, expected) for found, expected in blocks)  # 100,000 on the diagonal


def test_an_update_takes_moments(model, random_weights):
    with pytest.raises(PadimError, match="trained without --keep-moments"):
        fitted(model, [images_like(3, seed=5)], update=True)
    kept = fitted(Padim(SMALL, weights=random_weights), [images_like(4, seed=1)], keep_moments=True)
    with pytest.raises(PadimError, match="nothing to resume"):
        fitted(kept, [images_like(3, seed=5)], resume=True, update=True)
    fitted(kept, [images_like(4, seed=1)])
    assert kept.moments is None


@pytest.mark.parametrize("change", [{}, {"resize": (96, 64), "crop": ()}, {"channels": 0}, {"layers": ("layer2",)}])
def test_an_estimate_knows_the_bytes_of_moments_and_model(random_weights, tmp_path, change):
    config = replace(SMALL, **change)
    estimated = estimate(config, 40)
    images = images_like(3, seed=1, size=config.image_size)
    model = fitted(Padim(config, weights=random_weights), [images], keep_moments=True)
    assert estimated.parts["moments"] == sum(block.nbytes for row in model.moments.second for block in row)
    assert estimated.parts["features_of_an_image"] * 3 == sum(level.nbytes for level in model.features(images))
    model.moments = None
    for saving in ({}, {"storage": "fp16"}, {"embed_backbone": False}):
        model.save(tmp_path / "model", FitOptions(**saving))
        expected = estimate(config, 40, FitOptions(**saving)).model
        assert expected == pytest.approx((tmp_path / "model").stat().st_size, abs=60_000)
    kept = estimate(config, 400).memory - estimate(config, 400, FitOptions(calibrate=False)).memory
    factors, features = (estimated.parts[name] for name in ("factors", "features_of_an_image"))

    def peak(kept):  # while the images are scored, two groups of 32 at a time, or while the factors are written
        return max(factors + kept + 2 * 32 * features, 2 * factors)

    assert kept == peak(400 * features) - peak(0)
    assert estimate(config, 100_000).memory == estimate(config, 10**9).memory  # it does not grow


def test_a_detector_is_a_module_that_stays_in_evaluation_mode(random_weights):
    images = images_like(6, seed=1)
    model = fitted(Padim(SMALL, weights=random_weights), [images])
    expected = model.score(images).maps
    assert not any(module.training for module in model.train().modules())
    assert torch.equal(model.score(images).maps, expected)
    assert torch.equal(model(images).maps, expected)
    assert (model.device.type, model.to("meta").device.type) == ("cpu", "meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


def test_an_iterator_of_small_batches_has_a_calibration(random_weights):
    images = images_like(12, seed=1)
    once = fitted(Padim(replace(SMALL, batch_size=64), weights=random_weights), iter(images.split(1)))
    again = fitted(Padim(SMALL, weights=random_weights), [images])
    np.testing.assert_allclose(once.calibration.scores, again.calibration.scores, rtol=1e-4)
