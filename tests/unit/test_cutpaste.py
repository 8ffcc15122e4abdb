"""CutPaste: the geometry of its defects, SSPCAB, densities against scikit-learn, and a training that can be resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fitted
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KernelDensity as SklearnDensity

from padim import PadimError
from padim.cutpaste.augment import CLASSES, jittered, views, with_patch, with_scar
from padim.cutpaste.checkpoint import CHECKPOINT, LOG
from padim.cutpaste.config import OPTIMIZERS, CutPasteConfig
from padim.cutpaste.density import GaussianDensity, KernelDensity
from padim.cutpaste.model import CutPaste
from padim.cutpaste.network import CutPasteNetwork
from padim.cutpaste.sspcab import SSPCAB
from padim.cutpaste.steps import Training
from padim.cutpaste.training import train
from padim.detectors.options import FitOptions
from padim.system.progress import silent

SMALL = CutPasteConfig(
    initial="random",
    resize=(32, 32),
    scar_width=(2, 3),
    scar_height=(4, 8),
    training_batch=4,
    steps=4,
    cosine_steps=0,
    frozen_steps=0,
)
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def unique_pixels(width, height):
    """An image in which no two pixels are alike."""
    values = np.arange(width * height) + 1
    return Image.fromarray(
        np.stack([values % 256, values // 256, 0 * values], axis=1).astype(np.uint8).reshape(height, width, 3)
    )


def changed_box(image, other):
    """Left, top, right, bottom of what differs."""
    rows, columns = np.nonzero((np.asarray(image) != np.asarray(other)).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_a_patch_is_a_piece_of_the_image_of_the_drawn_area_and_aspect(size, seed):
    image = unique_pixels(*size)
    config = dataclasses.replace(SMALL, jitter=0.0)
    other = with_patch(image, config, np.random.default_rng(seed))
    assert other.size == image.size
    pixels, found = np.asarray(image), np.asarray(other)
    moved = (pixels != found).any(axis=2)
    if not moved.any():  # pasted where it came from
        return
    left, top, right, bottom = changed_box(image, other)
    width, height = right - left, bottom - top
    # Every pixel of the box comes from one and the same shift of the image.
    number = found[top, left].astype(int) @ [1, 256, 0] - 1
    source_top, source_left = divmod(number, size[0])
    assert (
        found[top:bottom, left:right] == pixels[source_top : source_top + height, source_left : source_left + width]
    ).all()
    # A rectangle of the wanted area and aspect, but for whole pixels and the sides of the image.
    assert width * height <= (math.sqrt(0.15 * size[0] * size[1]) + 1.5) ** 2 * 1.5
    assert max(width, height) <= math.sqrt(0.15 * size[0] * size[1] / 0.3) + 1


def test_patches_have_areas_and_aspects_of_their_whole_range():
    image, config = unique_pixels(200, 100), dataclasses.replace(SMALL, jitter=0.0)
    boxes = [changed_box(image, with_patch(image, config, np.random.default_rng(seed))) for seed in range(400)]
    widths, heights = (np.array([box[i + 2] - box[i] for box in boxes]) for i in (0, 1))
    areas, aspects = widths * heights / 20_000, widths / heights
    assert 0.018 < areas.min() < 0.03
    assert 0.14 < areas.max() < 0.153
    assert 0.28 < aspects.min() < 0.4
    assert 2.5 < aspects.max() < 3.6
    assert abs(np.log(aspects).mean()) < 0.1  # as often long as high: width and height are not confused


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_a_scar_is_thin_and_made_of_the_image(size, seed):
    image = unique_pixels(*size)
    other = with_scar(image, dataclasses.replace(SMALL, jitter=0.0), np.random.default_rng(seed))
    assert other.size == image.size
    known = {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)}
    assert {tuple(pixel) for pixel in np.asarray(other).reshape(-1, 3)} <= known
    changed = (np.asarray(image) != np.asarray(other)).any(axis=2).sum()
    assert changed <= 4 * 9 + 9  # nearest rotation may add a pixel a side


def test_scars_turn_both_ways_and_no_further_than_asked():
    image = Image.new("RGB", (200, 200))
    pixels = np.asarray(image).copy()
    pixels[:, :100] = 255  # half of the scars are white on black somewhere
    image = Image.fromarray(pixels)
    config = dataclasses.replace(SMALL, jitter=0.0, scar_width=(4, 4), scar_height=(40, 40), scar_rotation=45.0)
    angles = []
    for seed in range(200):
        other = with_scar(image, config, np.random.default_rng(seed))
        rows, columns = np.nonzero((np.asarray(other) != pixels).any(axis=2))
        if len(rows) > 100:  # wholly in the other half
            slope = np.linalg.eigh(np.cov(rows, columns))[1][:, 1]
            angles.append(math.degrees(math.atan2(slope[1], slope[0])) % 180)
    angles = np.array([angle - 180 if angle > 90 else angle for angle in angles])
    assert len(angles) > 20
    assert -47 < angles.min() < -30
    assert 30 < angles.max() < 47


def test_jitter_changes_colours_within_its_strength_and_0_changes_nothing():
    image = Image.fromarray(np.random.default_rng(0).integers(60, 180, (20, 30, 3), dtype=np.uint8))
    assert np.array_equal(jittered(image, 0.0, np.random.default_rng(0)), image)
    means = [
        np.asarray(jittered(image, 0.1, np.random.default_rng(seed))).mean() / np.asarray(image).mean()
        for seed in range(60)
    ]
    assert 0.85 < min(means) < 0.93
    assert 1.07 < max(means) < 1.15


@pytest.mark.parametrize("variant", CLASSES)
def test_views_are_one_a_class_and_follow_from_the_seed(variant):
    image = unique_pixels(40, 30)
    config = dataclasses.replace(SMALL, variant=variant, jitter=0.1)
    once, again, other = (views(image, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert len(once) == len(CLASSES[variant]) == (3 if variant == "3way" else 2)
    assert all(np.array_equal(a, b) for a, b in zip(once, again))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other))
    assert {view.size for view in once} == {(40, 30)}


@pytest.mark.parametrize(("kernel", "dilation"), [*itertools.product((1, 2, 3), (0, 1, 2))])
def test_sspcab_does_not_see_what_it_predicts(kernel, dilation):
    torch.manual_seed(0)  # weights that let every channel through nowhere have no gradient
    block = SSPCAB(8, kernel, dilation).double()
    block.attention = torch.nn.Identity()  # it weighs whole channels, by design with every position in them
    maps = torch.rand(1, 8, 13, 11, dtype=torch.float64, requires_grad=True)
    predicted = block(maps)
    assert predicted.shape == maps.shape
    predicted[0, :, 6, 5].sum().backward()
    seen = maps.grad.abs().sum(dim=(0, 1)) > 0
    reach = kernel + dilation
    rows, columns = torch.nonzero(seen).T - torch.tensor([[6], [5]])
    assert {*rows.abs().tolist()} == {*columns.abs().tolist()} == {*range(dilation + 1, reach + 1)}  # four corners only


def test_sspcab_weighs_the_prediction_by_channel():
    torch.manual_seed(0)
    block, maps = SSPCAB(16), torch.rand(2, 16, 6, 6)
    padded = F.pad(maps, [2] * 4)
    corners = [padded[:, :, y : y + 6, x : x + 6] for y in (0, 4) for x in (0, 4)]
    predicted = F.relu(sum(F.conv2d(part, conv.weight, conv.bias) for part, conv in zip(corners, block.corners)))
    squeezed = predicted.mean(dim=(2, 3))
    hidden = F.relu(F.linear(squeezed, block.attention.fc1.weight[:, :, 0, 0], block.attention.fc1.bias))
    gate = torch.sigmoid(F.linear(hidden, block.attention.fc2.weight[:, :, 0, 0], block.attention.fc2.bias))
    torch.testing.assert_close(block(maps), predicted * gate[:, :, None, None])


@pytest.mark.parametrize("place", ["none", "before-layer4", "last-block"])
def test_the_network_is_resnet18_but_for_the_block(place):
    network = CutPasteNetwork(dataclasses.replace(SMALL, sspcab=place)).eval()
    images = torch.rand(2, 3, 64, 64)
    embeddings, error = network.embed(images)
    logits, _ = network(images)
    assert (embeddings.shape, logits.shape) == ((2, 512), (2, 3))
    if place == "none":
        torch.testing.assert_close(embeddings, network.resnet(network.normalise(images)))
    assert (error.item() > 0) == (place != "none")
    assert sum(isinstance(module, SSPCAB) for module in network.modules()) == (place != "none")


def test_layers_that_were_never_trained_are_named(random_weights, caplog):
    """In training mode BatchNorm takes the mean of what it sees into its statistics."""
    backbone = torchvision.models.resnet18()
    backbone.load_state_dict(random_weights)
    backbone(torch.rand(2, 3, 32, 32))
    CutPasteNetwork(SMALL).load_pretrained(backbone.state_dict())
    assert caplog.text == ""
    of_layer4 = {key: value for key, value in random_weights.items() if key.startswith("layer4")}
    CutPasteNetwork(SMALL).load_pretrained(backbone.state_dict() | of_layer4)
    assert "never trained in layer4: say so" in caplog.text


def test_the_backbone_takes_all_of_its_weights(random_weights):
    network = CutPasteNetwork(SMALL)
    network.load_pretrained(random_weights)
    assert torch.equal(network.resnet.layer4[0].conv1.weight, random_weights["layer4.0.conv1.weight"])
    assert {name.removeprefix("resnet.") for name in network.pretrained} <= set(random_weights)
    for key in ("layer1.0.conv1.weight", "layer4.1.bn2.bias"):
        with pytest.raises(PadimError, match=f"no key '{key}'"):
            network.load_pretrained({name: value for name, value in random_weights.items() if name != key})
    with pytest.raises(PadimError, match=r"'conv1.weight' of shape \[1\], expected \[64, 3, 7, 7\]"):
        network.load_pretrained(random_weights | {"conv1.weight": torch.zeros(1)})


@pytest.fixture(scope="module")
def embeddings():
    """40 embeddings of length 1 in 12 dimensions, and 5 others."""
    points = np.random.default_rng(0).normal(size=(45, 12)) * np.linspace(0.2, 2, 12) + 1
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points[:40], points[40:]


def mahalanobis(known, others):
    model = LedoitWolf().fit(known)
    return np.sqrt(model.mahalanobis(others))


def test_the_gaussian_is_scikit_learns(embeddings):
    known, others = embeddings
    density, left_out = GaussianDensity.fit(torch.from_numpy(known))
    np.testing.assert_allclose(density(torch.from_numpy(others).float()), mahalanobis(known, others), rtol=1e-4)
    refitted = [mahalanobis(np.delete(known, i, axis=0), known[i : i + 1])[0] for i in range(len(known))]
    # The amount of shrinkage changes a little without an image; that is all.
    np.testing.assert_allclose(left_out, refitted, rtol=0.05)
    assert np.mean(left_out.numpy() / refitted) == pytest.approx(1, abs=0.02)
    in_sample = mahalanobis(known, known)
    assert np.mean(in_sample / refitted) < 0.9  # what leaving out is for


def test_embeddings_that_are_all_the_same_have_finite_distances():
    points = F.normalize(torch.ones(5, 12), dim=1)
    density, left_out = GaussianDensity.fit(points)
    assert density(points).max() < 1
    assert left_out.max() < 1
    others = density(F.normalize(torch.rand(3, 12), dim=1))
    assert bool(others.isfinite().all())
    assert others.min() > 1e3


@pytest.mark.parametrize("bandwidth", [1.0, 0.1])
def test_the_kernel_density_is_scikit_learns(embeddings, bandwidth):
    known, others = embeddings
    density, left_out = KernelDensity.fit(torch.from_numpy(known), bandwidth)
    truth = SklearnDensity(bandwidth=bandwidth).fit(known)
    np.testing.assert_allclose(density(torch.from_numpy(others).float()), -truth.score_samples(others), rtol=1e-4)
    refitted = [
        -SklearnDensity(bandwidth=bandwidth).fit(np.delete(known, i, axis=0)).score_samples(known[i : i + 1])[0]
        for i in range(len(known))
    ]
    np.testing.assert_allclose(left_out, refitted, rtol=1e-4)


def images(count=6, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def batches(count=6):
    return [torch.from_numpy(images(count)).permute(0, 3, 1, 2)]


@pytest.mark.slow
def test_a_step_is_torchs_gradient_descent():
    """One step, with all that it needs computed apart."""
    config = dataclasses.replace(SMALL, jitter=0.0, sspcab="before-layer4", sspcab_weight=0.5, weight_decay=0.1)
    network, twin = CutPasteNetwork(config), CutPasteNetwork(config)
    training = Training(network, config, images())
    parts = training.batch(0)
    (step,) = itertools.islice(training.steps(1), 1)
    twin.train()
    logits, error = twin(torch.cat(parts))
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    loss = F.cross_entropy(logits, labels) + 0.5 * error
    loss.backward()
    assert step.loss == pytest.approx(loss.item(), rel=1e-4)
    assert step.sspcab_error == pytest.approx(error.item(), rel=1e-4)
    assert step.accuracy == pytest.approx((logits.argmax(dim=1) == labels).float().mean().item())
    norm = torch.stack([parameter.grad.norm() for parameter in twin.parameters()]).norm()
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
    assert step.learning_rate == config.learning_rate
    for ours, theirs in zip(network.parameters(), twin.parameters()):
        expected = theirs - config.learning_rate * (theirs.grad + 0.1 * theirs)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_the_learning_rate_oscillates_as_in_the_reference_or_falls_once():
    reference = dataclasses.replace(SMALL, steps=50, cosine_steps=10)
    training = Training(CutPasteNetwork(reference), reference, images())
    rates = []
    for training.step in range(41):
        rates.append(training.learning_rate())
    # Lieberk/Paddle-SSPCAB: CosineAnnealingDecay with T_max 10, stepped with the number of the step.
    np.testing.assert_allclose(rates, [0.015 * (1 + math.cos(math.pi * step / 10)) for step in range(41)])
    once = dataclasses.replace(SMALL, steps=40, cosine_steps=0)
    training = Training(CutPasteNetwork(once), once, images())
    rates = []
    for training.step in range(41):
        rates.append(training.learning_rate())
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[20], rates[40]) == pytest.approx((0.03, 0.015, 0))


def test_pretrained_weights_stay_frozen_at_first():
    config = dataclasses.replace(SMALL, initial="imagenet", frozen_steps=1)
    network = CutPasteNetwork(config)
    network.load_pretrained(torchvision.models.resnet18().state_dict())
    training = Training(network, config, images())
    weight, head = network.resnet.conv1.weight, network.classes.weight
    before = weight.clone(), head.clone()
    steps = training.steps(1)
    next(steps)
    assert torch.equal(weight, before[0])
    assert not torch.equal(head, before[1])
    next(steps)
    assert not torch.equal(weight, before[0])
    steps.close()


def test_embeddings_that_are_not_finite_stop_the_training():
    detector = CutPaste(dataclasses.replace(SMALL, steps=1, learning_rate=1e30))
    with pytest.raises(PadimError, match="not finite: train with a smaller --learning-rate"):
        detector.fit(batches())


def test_every_image_comes_once_before_any_comes_again():
    training = Training(CutPasteNetwork(SMALL), dataclasses.replace(SMALL, jitter=0.0), images())
    seen = [training.views_of(index)[0] for index in range(12)]
    for lap in (seen[:6], seen[6:]):
        assert sorted(view.tobytes() for view in lap) == sorted(image.tobytes() for image in images())
    assert [view.tobytes() for view in seen[:6]] != [view.tobytes() for view in seen[6:]]


def test_a_loss_that_is_not_finite_stops_the_training():
    network = CutPasteNetwork(SMALL)
    with torch.no_grad():
        network.classes.weight.fill_(math.nan)
    with pytest.raises(PadimError, match=r"step 1: the loss is nan, its gradient nan: train with a smaller"):
        next(Training(network, SMALL, images()).steps(1))


class StoppedError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("select", ["last", "best-on-test"])
def test_a_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, select):
    config = dataclasses.replace(SMALL, steps=5, select=select, test_steps=1)
    aurocs = [0.5, 0.9, 0.7, 0.9, 0.8]

    def fit(folder, stop_after, *, resume):
        detector = CutPaste(config)
        looks = iter(aurocs[3:] if resume else aurocs)
        made = 0

        def look(detector, tests):
            nonlocal made
            made += 1
            if stop_after and made > stop_after:
                raise StoppedError
            return next(looks)

        def counted(*arguments, steps=Training.steps):
            for number, step in enumerate(steps(*arguments)):
                if stop_after and number == stop_after:
                    raise StoppedError
                yield step

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "steps", counted)
            patch.setattr(CutPaste, "_image_auroc", look)
            options = FitOptions(folder=folder, checkpoint_steps=3, resume=resume)  # each has 90 MB
            tests = [(batches()[0], torch.tensor([False, True, False, True, True, True]))]
            return detector, detector.fit(batches(), options, tests=tests)

    whole, expected_result = fit(tmp_path / "whole", 0, resume=False)
    with pytest.raises(StoppedError):
        fit(tmp_path / "parts", 3, resume=False)
    parts, result = fit(tmp_path / "parts", 0, resume=True)
    tensors, expected = (detector.tensors(FitOptions()) for detector in (parts, whole))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert result.figures == expected_result.figures
    assert result.figures["step"] == (5 if select == "last" else 4)  # the latest of the best ones
    logs = [(tmp_path / name / LOG).read_text().splitlines() for name in ("whole", "parts")]
    columns = [[line.split(",")[:6] + line.split(",")[-1:] for line in log] for log in logs]
    assert columns[0] == columns[1]
    assert len(logs[0]) == 6


class Tiny(torch.nn.Module):
    """Stands in for the network, whose checkpoints have 90 MB."""

    pretrained = frozenset({"body.weight", "body.bias"})

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = torch.nn.Conv2d(3, 4, 5, 4)
            self.norm = torch.nn.BatchNorm2d(4)
            self.classes = torch.nn.Linear(4, 3)

    def forward(self, images):
        maps = self.norm(self.body(images / 255.0))
        return self.classes(F.relu(maps).mean(dim=(2, 3))), torch.zeros(())


TINY = dataclasses.replace(SMALL, steps=8, cosine_steps=3, frozen_steps=2)


def trained(folder, config=TINY, *, resume=False, count=6, aurocs=(), progress=silent):
    """A tiny network after its training, and what was found."""
    network = Tiny()
    options = FitOptions(folder=folder, checkpoint_steps=3, resume=resume)
    return network, train(network, config, images(count), "", options, iter(aurocs).__next__, progress)


def logged(folder):
    """The lines of the log without the times, each as its columns."""
    return [line.split(",")[:6] + line.split(",")[9:] for line in (folder / LOG).read_text().splitlines()]


def assert_same(networks, folders):
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    logs = [*map(logged, folders)]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == ["step", *map(str, range(1, TINY.steps + 1))]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("select", "first", "rest", "whole"),
    [("last", [], [], []), ("best-on-test", [0.5, 0.9], [0.7, 0.6], [0.5, 0.7, 0.6])],  # after 3, 5; 6, 8; 3, 6, 8
)
def test_a_finished_training_can_be_lengthened(tmp_path, optimizer, select, first, rest, whole):
    """The last look of the shorter training, at its step 5, is none of the longer one, and neither is its best step."""
    config = dataclasses.replace(TINY, optimizer=optimizer, select=select, test_steps=3)
    _, short = trained(tmp_path / "parts", dataclasses.replace(config, steps=5), aurocs=first)
    assert short.figures["step"] == 5
    longer, result = trained(tmp_path / "parts", config, resume=True, aurocs=rest)
    at_once, expected = trained(tmp_path / "whole", config, aurocs=whole)
    assert_same((longer, at_once), (tmp_path / "parts", tmp_path / "whole"))
    assert result.figures == expected.figures
    assert result.figures["step"] == (8 if select == "last" else 6)
    again, _ = trained(tmp_path / "parts", config, resume=True, aurocs=rest[-1:])
    assert_same((again, at_once), (tmp_path / "parts", tmp_path / "whole"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_training_has_a_line_of_every_step_and_goes_on_from_its_checkpoint(tmp_path, optimizer):
    config = dataclasses.replace(TINY, optimizer=optimizer)

    def killed(progress):
        if progress.done:
            assert [int(row[0]) for row in logged(tmp_path / "parts")[1:]] == [*range(1, progress.done + 1)]
        if progress.done == 5:  # two steps after the checkpoint
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(tmp_path / "parts", config, progress=killed)
    with (tmp_path / "parts" / LOG).open("a") as file:
        file.write("6,1.0986,0.0,0.3")
    resumed, _ = trained(tmp_path / "parts", config, resume=True)
    whole, _ = trained(tmp_path / "whole", config)
    assert_same((resumed, whole), (tmp_path / "parts", tmp_path / "whole"))


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate():
    """Kingma and Ba 2015, algorithm 1: without a past, the step is the rate times g / (|g| + epsilon)."""
    config = dataclasses.replace(TINY, optimizer="adam", weight_decay=5.0, jitter=0.0)
    network, twin = Tiny(), Tiny()
    training = Training(network, config, images())
    F.cross_entropy(twin(torch.cat(training.batch(0)))[0], torch.arange(3).repeat_interleave(4)).backward()
    steps = training.steps(1)
    next(steps)
    steps.close()
    for name, before in twin.named_parameters():
        gradient = (before.grad + 5 * before).double()
        frozen = name in Tiny.pretrained
        expected = before - (0.0 if frozen else config.learning_rate) * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(network.get_parameter(name), expected.float(), rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    trained(tmp_path)
    for changes, message in (
        ({"steps": 7}, "has made 8 steps already, more than --steps 7: train without --resume"),
        ({"steps": 9, "learning_rate": 0.1}, "another --steps, --learning-rate: train without --resume"),
        ({"optimizer": "adam"}, "another --optimizer: train without --resume"),
    ):
        with pytest.raises(PadimError, match=message):
            trained(tmp_path, dataclasses.replace(TINY, **changes), resume=True)
    with pytest.raises(PadimError, match="another images: train without --resume"):
        trained(tmp_path, resume=True, count=5)


def test_a_learning_rate_that_falls_once_has_one_number_of_steps(tmp_path):
    once = dataclasses.replace(TINY, steps=2, cosine_steps=0)
    trained(tmp_path, once)
    with pytest.raises(PadimError, match=r"fall over 2 steps \(--cosine-steps 0\), not over 9: train without"):
        trained(tmp_path, dataclasses.replace(once, steps=9), resume=True)


def test_a_damaged_checkpoint_is_refused_and_a_missing_one_is_missed(tmp_path, caplog):
    config = dataclasses.replace(TINY, steps=1)
    trained(tmp_path, config)
    content = (tmp_path / CHECKPOINT).read_bytes()
    for damage in (content[:1000], b"", b"x" * 2000):
        (tmp_path / CHECKPOINT).write_bytes(damage)
        with pytest.raises(PadimError, match=r"is damaged: train without --resume"):
            trained(tmp_path, config, resume=True)
    (tmp_path / CHECKPOINT).unlink()
    trained(tmp_path, config, resume=True)
    assert "checkpoint.safetensors to resume: starting with the first step" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header["values"].update(step=math.inf),
        lambda header, tensors: header["values"].update(step=-5),
        lambda header, tensors: header["values"].update(step=0),
        lambda header, tensors: header["values"].update(step=2),
        lambda header, tensors: header["values"].update(best=[math.inf]),
        lambda header, tensors: header["values"].update(best=[0.5, math.inf]),
        lambda header, tensors: header["run"].update(config=[]),
        lambda header, tensors: header.update(rows=[[{}, 0.5]]),
        lambda header, tensors: header["rows"][0][0].update(loss="0.5"),
        lambda header, tensors: tensors.update({"best.classes.bias": torch.zeros(3)}),
        lambda header, tensors: tensors.pop("network.classes.bias"),
        lambda header, tensors: tensors.pop("exp_avg_sq.classes.bias"),
        lambda header, tensors: tensors.update({"exp_avg.classes.bias": torch.zeros(7)}),
        lambda header, tensors: tensors.update({"step.classes.bias": torch.tensor(-1.0)}),
        lambda header, tensors: tensors.update({"step.classes.bias": torch.tensor(math.nan)}),
    ],
)
def test_a_hostile_checkpoint_is_an_error_before_any_step(tmp_path, monkeypatch, change):
    config = dataclasses.replace(TINY, steps=1, optimizer="adam")
    trained(tmp_path, config)
    with safe_open(tmp_path / CHECKPOINT, "pt") as file:
        header = json.loads(file.metadata()["padim-checkpoint"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    change(header, tensors)
    save_file(tensors, tmp_path / CHECKPOINT, {"padim-checkpoint": json.dumps(header)})
    monkeypatch.setattr(Training, "steps", lambda *arguments: pytest.fail("it started"))
    with pytest.raises(PadimError, match=r"is damaged: train without --resume"):
        trained(tmp_path, config, resume=True)


@pytest.mark.parametrize("density", ["gaussian", "kernel"])
def test_scores_are_those_of_the_embeddings_and_survive_the_file(tmp_path, density):
    config = dataclasses.replace(SMALL, steps=1, density=density)
    detector = fitted(CutPaste(config), batches(), "category")
    scores = detector.score(batches()[0])
    assert scores.maps is None
    embeddings = F.normalize(detector.network.eval().embed(batches()[0])[0], dim=1).detach().numpy()
    if density == "gaussian":
        truth = mahalanobis(embeddings.astype(np.float64), embeddings)
    else:
        truth = -SklearnDensity(bandwidth=1.0).fit(embeddings).score_samples(embeddings)
    np.testing.assert_allclose(scores.images, truth, rtol=1e-2)
    detector.save(tmp_path / "model.safetensors")
    loaded = CutPaste.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.score(batches()[0]).images, scores.images)
    assert (loaded.config, loaded.provenance) == (detector.config, detector.provenance)
    assert loaded.calibration.threshold(0.5) == detector.calibration.threshold(0.5)
    assert torch.equal(loaded.embeddings, detector.embeddings)
    with pytest.raises(PadimError, match="its weights are nowhere else"):
        detector.save(tmp_path / "model.safetensors", FitOptions(embed_backbone=False))


def test_the_step_that_is_best_on_the_test_images_takes_some_and_says_so():
    config = dataclasses.replace(SMALL, select="best-on-test")
    with pytest.raises(PadimError, match="pass --eval"):
        fitted(CutPaste(config), batches())
    assert "have seen the answers" in config.remark
    assert SMALL.remark is None


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(count):
    with pytest.raises(PadimError, match="at least two training images"):
        fitted(CutPaste(SMALL), [batch for batch in batches(count) if len(batch)])


def test_no_steps_at_all_give_the_untrained_baseline(random_weights):
    config = dataclasses.replace(SMALL, initial="imagenet", steps=0)
    detector = fitted(CutPaste(config, weights=random_weights), batches())
    plain = torchvision.models.resnet18()
    plain.load_state_dict(random_weights)
    plain.fc = torch.nn.Identity()
    (batch,) = batches()
    truth = F.normalize(plain.eval()(detector.network.normalise(batch)), dim=1)
    torch.testing.assert_close(detector.score(batch).embeddings, truth, rtol=1e-3, atol=1e-4)
