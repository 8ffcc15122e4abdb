"""On fake CUDA tensors, which have devices and shapes and no values: nothing mixes devices, whatever is computed.

That needs no GPU. Where the code looks at a value, it sees what goes on: sums that are finite, factors that exist.
"""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import SMALL
from oracles import fitted
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from padim import Padim
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.density import GaussianDensity, KernelDensity
from padim.cutpaste.network import CutPasteNetwork
from padim.detectors.options import FitOptions

aten = torch.ops.aten

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class Values(TorchDispatchMode):
    """What fake tensors are when the code asks: `all` is true, `any` is not, numbers are 1."""

    def __init__(self):
        super().__init__()
        self.problems = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is aten.equal.default:
            return True
        try:
            found = function(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if args[0].dtype == torch.bool:
                return not any(args[0] is problem for problem in self.problems)
            return 1.0 if args[0].is_floating_point() else 1
        if function.overloadpacket is aten.any:
            self.problems.append(found)
        return found


def as_array(tensor, *, force=False):
    """In place of `Tensor.numpy`: ones, of a tensor that has been copied to the CPU."""
    assert tensor.device.type == "cpu"
    return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def apply(module, function, recurse=True):
    """In place of `Module._apply`, which swaps tensors that it thinks nobody else refers to."""
    for child in module.children():
        child._apply(function)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = torch.nn.Parameter(function(value), requires_grad=value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = function(value)
    return module


@pytest.fixture
def gpu(random_weights):
    """A GPU that computes nothing; gives weights for it."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        Values(),
        mock.patch.object(torch.Tensor, "numpy", as_array),
        mock.patch.object(torch.nn.Module, "_apply", apply),
        mock.patch("padim.model.digest", return_value=""),
    ):
        yield {key: torch.empty(value.shape, dtype=value.dtype) for key, value in random_weights.items()}


def images(count):
    """Batches of four, on the CPU, as readers give them."""
    return [torch.empty((4, 3, 64, 64), dtype=torch.uint8) for _ in range(count // 4)]


def devices(tensors):
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": ("layer2",), "channels": 0},
        {"tile": (32, 32), "tile_overlap": 16},
        {"tile": (32, 32), "tile_overlap": 16, "tile_model": "position"},
        {"trim": 0.1},
    ],
    ids=["plain", "one level", "tiles", "a model per tile", "trimmed"],
)
def test_fit_calibration_update_and_scores_stay_on_the_gpu(changes, precision, gpu):
    config = dataclasses.replace(SMALL, precision=precision, **changes)
    model = fitted(Padim(config, weights=gpu, device="cuda"), images(12), keep_moments=True)
    assert devices([*model.buffers(), *model.parameters(), *model.moments.sums()]) == {"cuda"}
    scores = model.score(images(4)[0])
    assert devices([scores.images, scores.maps]) == {"cuda"}
    assert model.score_pixels(np.zeros((2, 64, 64, 3), dtype=np.uint8)).maps.shape == (2, 64, 64)
    fitted(model, images(12), update=True)
    assert devices([*model.gaussian.buffers(), *model.moments.sums()]) == {"cuda"}
    assert model.tensors(FitOptions()).keys() >= {"mean.0", "factor.0.0", "moments.shift.0"}


def test_ignored_pixels_lie_on_the_gpu(gpu):
    model = Padim(SMALL, weights=gpu, device="cuda")
    mask = np.zeros((64, 64), dtype=bool)
    mask[:10] = True
    model.ignore(mask)
    assert model.ignored.device.type == "cuda"
    assert fitted(model, images(8)).score(images(4)[0]).maps.device.type == "cuda"


@pytest.mark.parametrize("place", ["none", "before-layer4", "last-block"])
def test_the_network_of_cutpaste_stays_on_the_gpu(place, gpu):
    """Its gradients take a GPU: `test_device.py` has them."""
    with torch.device("cuda"):
        network = CutPasteNetwork(CutPasteConfig(initial="random", resize=(96, 96), sspcab=place)).train()
    logits, error = network(torch.empty((6, 3, 96, 96), dtype=torch.uint8, device="cuda"))
    assert devices([logits, error]) == {"cuda"}


@pytest.mark.parametrize("density", [GaussianDensity, KernelDensity])
def test_densities_of_cutpaste_move_to_the_gpu(density, gpu):
    embeddings = torch.empty((8, 512))
    with mock.patch.object(torch.Tensor, "numpy", return_value=np.eye(8, 512, dtype=np.float32)):
        found, _ = density.fit(embeddings, *([1.0] if density is KernelDensity else []))
    moved = found.to(torch.device("cuda"))
    assert moved(torch.empty((2, 512), device="cuda")).device.type == "cuda"


def test_devices_that_mix_are_noticed(gpu):
    """Or the tests above could not fail."""
    model = Padim(SMALL, weights=gpu, device="cuda")
    model.selection.level_0 = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(Exception, match="device"):
        fitted(model, images(8))
