"""What the tests share: the folder of real images and weights, small random weights, small categories."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision

from padim import Config
from padim.data.synth import write_category

SHARED = Path(__file__).parents[2] / "shared"

# Where several processes share the cores, each computes on its part of them.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# Fast enough for unit tests: a 16 x 16 grid of patches.
SMALL = Config(channels=20, resize=(64,), crop=(64,), batch_size=4)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which lies beside the checkout where it is available."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images and weights in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def random_weights() -> dict[str, torch.Tensor]:
    """A ResNet18 as it is before any training, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18().state_dict()


@pytest.fixture(scope="session")
def weights_file(random_weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(random_weights, path)
    return path


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of 64 x 64 pixels: 8 training images, 4 good ones and 2 of each defect to test on."""
    root = tmp_path_factory.mktemp("data")
    for kind in ("texture", "object"):
        for _ in write_category(root / kind, kind, 64, 64, train=8, good=4, defective=2, seed=3):
            pass
    return root


@pytest.fixture(scope="session")
def exported(data_root: Path, weights_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.safetensors` and `model.onnx` of the category texture."""
    from padim.cli.export import main as export_main
    from padim.cli.train import main as train_main

    output = tmp_path_factory.mktemp("exported")
    where = ["--category", "texture", "--data", data_root, "--weights", weights_file, "--output", output]
    protocol = ["--resize", 64, "--crop", 64, "--channels", 20, "--batch-size", 4]
    assert train_main([str(argument) for argument in [*where, *protocol]]) == 0
    folder = output / "texture"
    assert export_main(["--model", str(folder / "model.safetensors")]) == 0
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process: run("train", "--category", "texture")."""

    def call(name: str, *arguments: object) -> Result:
        __import__(f"padim.cli.{name}")
        try:
            code = sys.modules[f"padim.cli.{name}"].main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
