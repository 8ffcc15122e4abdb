"""On a GPU: the figures, models and losses of the CPU, in memory that is known, and without a halt per image."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import SMALL
from oracles import LIMIT, fitted

from padim import Padim
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.model import CutPaste
from padim.cutpaste.network import CutPasteNetwork
from padim.cutpaste.steps import Training
from padim.detectors.options import FitOptions

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

# What the figures of the reference may differ by.
TOLERANCE = 0.0005


def images_like(count: int, seed: int, side: int = 64) -> torch.Tensor:
    """Images that vary smoothly about one pattern, uint8."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    rough = pattern + 0.2 * torch.rand(count, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(rough, size=(side, side), mode="bilinear")
    return (fine / 1.2 * 255).to(torch.uint8)


@contextmanager
def counted_halts() -> Iterator[list[warnings.WarningMessage]]:
    """The operations within that wait for the GPU, as torch warns of them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def command(name: str, *arguments: object, start: str = "pass") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, after some Python code."""
    code = f"import sys; {start}; from padim.cli.{name} import main; sys.exit(main())"
    process = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(process, capture_output=True, text=True, timeout=3 * LIMIT)


def torchrun(processes: int, device: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    small = ["--category", "texture", "--resize", 64, "--crop", 64, "--channels", 20, "--device", device]
    return subprocess.run(
        [*map(str, [*launcher, "-m", "padim.cli.train", *small, *arguments])],
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
    )


# The model


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, sigma=0.0, channels=0, layers=("layer1", "layer2")),
        dataclasses.replace(SMALL, tile=(32, 32), tile_overlap=16),
        dataclasses.replace(SMALL, tile=(32, 32), tile_overlap=16, tile_model="position"),
        dataclasses.replace(SMALL, trim=0.1),
        dataclasses.replace(SMALL, align="shift"),
    ],
    ids=["plain", "all channels", "tiles", "tiles with models of their own", "trimmed", "aligned"],
)
def test_the_model_is_that_of_the_cpu(config, random_weights, tmp_path):
    train, test = images_like(40, 0).split(4), images_like(5, 1)
    test[:, :, 20:30, 20:30] = 255
    models = [fitted(Padim(config, weights=random_weights, device=device), train) for device in ("cpu", "cuda")]
    cpu, gpu = models
    assert {tensor.device.type for tensor in gpu.buffers()} == {"cuda"}
    np.testing.assert_allclose(gpu.calibration.scores, cpu.calibration.scores, rtol=2e-4)
    np.testing.assert_allclose(gpu.calibration.pixels, cpu.calibration.pixels, rtol=5e-3)  # a bin is 0.2 % wide
    expected, found = (model.score(test) for model in models)
    assert found.maps.device.type == "cuda"
    np.testing.assert_allclose(found.maps.cpu(), expected.maps, rtol=2e-4)
    gpu.save(tmp_path / "gpu.safetensors")
    for device in ("cpu", "cuda"):
        again = Padim.load(tmp_path / "gpu.safetensors", device=device)
        np.testing.assert_allclose(again.score(test).maps.cpu(), expected.maps, rtol=2e-4)


def test_an_update_goes_on_where_the_cpu_was(random_weights, tmp_path):
    parts = images_like(40, 0).split(20)
    whole = fitted(Padim(SMALL, weights=random_weights), [*parts])
    half = fitted(Padim(SMALL, weights=random_weights), parts[:1], keep_moments=True)
    half.save(tmp_path / "half.safetensors", FitOptions(keep_moments=True))
    model = fitted(Padim.load(tmp_path / "half.safetensors", device="cuda"), parts[1:], update=True)
    test = images_like(3, 1)
    np.testing.assert_allclose(model.score(test).maps.cpu(), whole.score(test).maps, rtol=5e-4)


def test_pixels_are_ignored_on_the_gpu_too(random_weights):
    mask = np.zeros((64, 64), dtype=bool)
    mask[:20] = True
    model = Padim(SMALL, weights=random_weights, device="cuda")
    model.ignore(mask)
    fitted(model, images_like(20, 0).split(4))
    test = images_like(2, 1)
    painted = test.clone()
    painted[:, :, :20] = 0
    assert torch.equal(model.score(test).images, model.score(painted).images)


def test_products_stay_in_float32_where_a_program_allows_tf32(random_weights):
    train, test = images_like(40, 0).split(4), images_like(4, 1)
    expected = fitted(Padim(SMALL, weights=random_weights, device="cuda"), train).score(test).maps
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = fitted(Padim(SMALL, weights=random_weights, device="cuda"), train).score(test).maps
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


def test_the_same_fit_gives_the_same_bits(random_weights):
    train, test = images_like(40, 0).split(4), images_like(4, 1)
    first, second = (fitted(Padim(SMALL, weights=random_weights, device="cuda"), train) for _ in range(2))
    assert torch.equal(first.score(test).maps, second.score(test).maps)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_lower_precisions_rank_images_alike(precision, random_weights):
    config = dataclasses.replace(SMALL, precision=precision)
    test = torch.cat([images_like(4, 1), images_like(4, 2)])
    test[4:, :, 20:40, 20:40] = 255
    exact, half = (
        fitted(Padim(config, weights=random_weights, device="cuda"), images_like(40, 0).split(4)).score(test).images
        for config in (SMALL, config)
    )
    np.testing.assert_allclose(half.cpu(), exact.cpu(), rtol={"tf32": 0.02}.get(precision, 0.1))
    assert half[4:].min() > half[:4].max()


# Halts and memory


def test_no_halt_per_image_while_scoring(random_weights):
    model = fitted(Padim(SMALL, weights=random_weights, device="cuda"), images_like(20, 0).split(4))
    counts = []
    for count in (1, 8, 64):
        pixels = images_like(count, 1).permute(0, 2, 3, 1).numpy()
        model.score_pixels(pixels)
        with counted_halts() as halts:
            model.score_pixels(pixels)
        counts.append(len(halts))
    assert 0 < max(counts) <= 5  # the images, whether all is finite, image scores, maps
    assert counts[2] <= counts[0]


def test_no_halt_per_image_while_fitting(random_weights):
    config, counts = dataclasses.replace(SMALL, batch_size=32), []
    for batches in (2, 4):
        train = images_like(32 * batches, 0).split(32)
        fitted(Padim(config, weights=random_weights, device="cuda"), train)
        model = Padim(config, weights=random_weights, device="cuda")
        with counted_halts() as halts:
            fitted(model, train)
        counts.append(len(halts))
    assert 0 < counts[1] - counts[0] <= 2 * 5  # per batch: its images, whether each level is finite, and the maps


def test_a_fit_takes_no_more_memory_with_more_images(random_weights):
    peaks = []
    for count in (500, 1000):  # both more than the calibration keeps
        gc.collect()  # traced networks refer to themselves
        torch.cuda.reset_peak_memory_stats()
        fitted(Padim(SMALL, weights=random_weights, device="cuda"), images_like(count, 0).split(50))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.01 * peaks[0]


# CutPaste


def training(device: str, precision: str = "fp32", **options: object) -> Training:
    config = CutPasteConfig(
        initial="random", resize=(64, 64), training_batch=4, steps=6, frozen_steps=0, precision=precision, **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CutPasteNetwork(config)
    pixels = images_like(8, 0).permute(0, 2, 3, 1).contiguous().numpy()
    return Training(network.to(device), config, pixels)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_follows_that_of_the_cpu(optimizer):
    rate = {"sgd": 0.03, "adam": 0.001}[optimizer]
    runs = [[*training(where, optimizer=optimizer, learning_rate=rate).steps(2)] for where in ("cpu", "cuda")]
    cpu, gpu = ([step.loss for step in run] for run in runs)
    np.testing.assert_allclose(gpu[:2], cpu[:2], rtol=1e-3)  # rounding errors grow with every step


def test_the_same_training_gives_the_same_losses_but_for_rounding_errors():
    """Those of gradients that GPUs add up in any order."""
    runs = [[step.loss for step in training("cuda").steps(2)][:3] for _ in range(2)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_resumed_training_goes_on_as_it_would_have(precision):
    whole = training("cuda", precision)
    steps = iter(whole.steps(1))
    [*itertools.islice(steps, 3)]
    tensors, values = whole.state()
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    rest = [step.loss for step in steps]
    again = training("cuda", precision)
    again.restore(tensors, json.loads(json.dumps(values)))
    assert [step.loss for step in again.steps(1)] == pytest.approx(rest, rel=1e-2)


@pytest.mark.parametrize("density", ["gaussian", "kernel"])
def test_cutpaste_fits_saves_and_scores(density, tmp_path):
    config = CutPasteConfig(
        initial="random", resize=(64, 64), training_batch=4, steps=2, frozen_steps=0, density=density
    )
    model = fitted(CutPaste(config, device="cuda"), images_like(12, 0).split(4), folder=tmp_path)
    test = images_like(3, 1)
    expected = model.score(test).images
    assert expected.device.type == "cuda"
    model.save(tmp_path / "model.safetensors")
    for device in ("cpu", "cuda"):
        found = CutPaste.load(tmp_path / "model.safetensors", device=device).score(test).images
        np.testing.assert_allclose(found.cpu(), expected.cpu(), rtol=1e-3)


# The commands


def test_the_figures_of_the_reference(shared, tmp_path):
    weights = shared / "weights/resnet18-imagenet-layers1to3.pth"
    where = ["--category", "bottle", "--data", shared / "data/mvtec", "--output", tmp_path, "--device", "cuda"]
    trained = command("train", *where, "--preset", "pytorch-r18", "--weights", weights, "--json")
    evaluated = command("eval", *where, "--json")
    assert (trained.returncode, evaluated.returncode) == (0, 0), trained.stderr + evaluated.stderr
    found, expected = json.loads(evaluated.stdout), json.loads((shared / "reference.json").read_text())["bottle"]
    for key in ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_f1_max", "image_f1_max"):
        assert found[key] == pytest.approx(expected[key], abs=TOLERANCE), key
    assert json.loads(trained.stdout)["device_peak_memory_bytes"] < 2**30
    assert found["device_peak_memory_bytes"] < 2**30


def test_predict_times_the_network_and_gives_the_cpus_scores(data_root, weights_file, tmp_path):
    small = ["--resize", 64, "--crop", 64, "--channels", 20]
    where = ["--data", data_root, "--category", "texture", "--output", tmp_path]
    assert command("train", *where, *small, "--weights", weights_file, "--device", "cuda").returncode == 0
    model, images = tmp_path / "texture/model.safetensors", data_root / "texture/test"
    runs = [command("predict", "--model", model, images, "--timing", "--device", name) for name in ("cpu", "cuda")]
    cpu, gpu = ([json.loads(line) for line in run.stdout.splitlines()] for run in runs)
    assert len(cpu) == len(gpu) > 0, runs[1].stderr
    np.testing.assert_allclose([line["score"] for line in gpu], [line["score"] for line in cpu], rtol=2e-4)
    assert all(line["milliseconds"]["network"] > 0 for line in gpu)


def test_too_little_memory_is_one_line(data_root, weights_file, tmp_path):
    little = "import torch; torch.cuda.set_per_process_memory_fraction(1e-4)"
    where = ["--data", data_root, "--category", "texture", "--output", tmp_path, "--weights", weights_file]
    found = command("train", *where, "--device", "cuda", start=little)
    assert found.returncode == 2
    assert "out of memory" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_gpu_that_is_not_there_is_one_line(data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--category", "texture", "--output", tmp_path, "--weights", weights_file]
    found = command("train", *where, "--device", "cuda:77")
    assert found.returncode == 2
    assert "no device 'cuda:77'" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_process_of_torchrun_talks_through_nccl(data_root, weights_file, tmp_path):
    where = ["--data", data_root, "--weights", weights_file, "--json"]
    together = torchrun(1, "cuda", *where, "--output", tmp_path / "together")
    assert together.returncode == 0, together.stderr
    small = ["--category", "texture", "--resize", 64, "--crop", 64, "--channels", 20, "--device", "cuda"]
    alone = command("train", *small, *where, "--output", tmp_path / "alone")
    summaries = [json.loads(run.stdout) for run in (together, alone)]
    assert summaries[0]["threshold"] == pytest.approx(summaries[1]["threshold"], rel=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there is a GPU for each of two processes")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_two_processes_for_one_gpu_are_refused(device, data_root, weights_file, tmp_path):
    """The second one has no GPU, or nccl finds that both are on one."""
    found = torchrun(2, device, "--data", data_root, "--weights", weights_file, "--output", tmp_path)
    assert found.returncode != 0
    assert {"cuda": "ERROR: torch finds no device 'cuda:1'", "cuda:0": "ERROR: "}[device] in found.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
