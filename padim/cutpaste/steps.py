"""The training of a CutPaste network, step by step; it can be stopped and taken up again at any of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from padim.cutpaste.augment import view_generator, views
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.network import CutPasteNetwork
from padim.errors import PadimError
from padim.system.ahead import Ahead
from padim.system.device import autocast, products

# The batch that is learned from, and two that are being made.
_AHEAD = 3

# What an optimizer keeps per weight, by torch's names.
_KEPT = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq", "step")}

# What the generator of the order of the images is told apart by from those of their views.
_ORDER = 0


@dataclass(frozen=True)
class Step:
    """What is known of an update of the weights.

    Attributes:
        step: its number, from 1.
        loss: cross entropy plus the weighted error of SSPCAB.
        sspcab_error: that error.
        accuracy: share of the images whose class was recognised.
        learning_rate: what it was.
        gradient_norm: of all gradients together.
        images_per_second: augmented images.
        data_seconds: time spent waiting for them.
        compute_seconds: time spent on them.
    """

    step: int
    loss: float
    sspcab_error: float
    accuracy: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    data_seconds: float
    compute_seconds: float


class Training:
    """Gradient descent on images and the defects made in them (Li et al. 2021, equation 1).

    All that is drawn at random follows from the seed and the number of the step, so that the state
    of a run is its weights, what the optimizer keeps of them and that number.

    Attributes:
        network: what is trained.
        step: how many steps were made.
    """

    def __init__(self, network: CutPasteNetwork, config: CutPasteConfig, images: NDArray[np.uint8]) -> None:
        """A run on RGB images `[n, h, w, 3]`, on the device of the network."""
        self.network = network
        self.step = 0
        self._config = config
        self._images = images
        self._device = next(network.parameters()).device
        self._optimizer = _optimizer(network, config)
        halves = config.precision == "fp16" and self._device.type == "cuda"
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=halves)  # or small gradients become 0

    def steps(self, workers: int) -> Iterator[Step]:
        """Make the steps that are left, with threads that prepare the images.

        Raises:
            PadimError: a loss or a gradient is not finite.
        """
        numbers = range(self.step, self._config.steps)
        ahead = Ahead(self.batch, numbers, threads=workers, count=_AHEAD, eager=True)
        start = time.perf_counter()
        with closing(iter(ahead)) as begun:
            for _, future in begun:
                batch = future.result()
                with products(self._config.precision):  # those of the gradients, too
                    step = self._update(batch, start)
                yield step
                start = time.perf_counter()

    def learning_rate(self) -> float:
        """That of the next step: half a cosine down, and in the reference up again."""
        period = self._config.cosine_steps or self._config.steps
        return self._config.learning_rate * (1 + math.cos(math.pi * self.step / period)) / 2

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the steps to come depend on, as tensors and as plain values."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            kept = self._optimizer.state[parameter]
            tensors |= {f"{key}.{name}": kept[key] for key in _KEPT[self._config.optimizer] if key in kept}
        return tensors, {"step": self.step, "scaler": self._scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where a run with the same configuration and images was, from its `state`.

        Raises:
            KeyError, OverflowError, RuntimeError, TypeError, ValueError: it is that of another network, or damaged.
        """
        self.network.load_state_dict(
            {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
        )
        self.step = int(values["step"])
        keys = _KEPT[self._config.optimizer]
        for name, parameter in self.network.named_parameters():
            if f"{keys[0]}.{name}" not in tensors:  # frozen until now
                continue
            kept = self._optimizer.state[parameter]
            for key in keys:
                template = torch.zeros(()) if key == "step" else parameter
                kept[key] = torch.empty_like(template).copy_(tensors[f"{key}.{name}"].view_as(template))
            if not 0 < kept.get("step", self.step) <= self.step:
                raise ValueError("step")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(values["scaler"])

    def batch(self, number: int) -> list[Tensor]:
        """The images of a step, `[b, 3, h, w]` for each class."""
        size = self._config.training_batch
        views_of_each = [self.views_of(number * size + i) for i in range(size)]
        return [torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2) for same in zip(*views_of_each, strict=True)]

    def views_of(self, index: int) -> list[NDArray[np.uint8]]:
        """The versions of the image that comes at a place in the order of the whole run."""
        lap, place = divmod(index, len(self._images))
        order = np.random.default_rng([self._config.seed, _ORDER, lap]).permutation(len(self._images))
        image = Image.fromarray(self._images[order[place]])
        return [np.array(view) for view in views(image, self._config, view_generator(self._config, index))]

    def _update(self, batch: Sequence[Tensor], start: float) -> Step:
        ready = time.perf_counter()
        frozen = self.step < self._config.frozen_steps
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not (frozen and name in self.network.pretrained))
        rate = self.learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        images = torch.cat([same.to(self._device) for same in batch])
        labels = torch.arange(len(batch), device=self._device).repeat_interleave(len(batch[0]))
        with autocast(self._device, self._config.precision):
            logits, error = self.network(images)
        loss = F.cross_entropy(logits.float(), labels) + self._config.sspcab_weight * error
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), math.inf)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.network.eval()
        self.step += 1
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        step = Step(
            self.step,
            loss.item(),
            error.item(),
            accuracy.item(),
            rate,
            norm.item(),
            len(images) / (time.perf_counter() - start),
            ready - start,
            time.perf_counter() - ready,
        )
        # Half precision skips a step whose gradients overflow, and scales the next one less.
        if not math.isfinite(step.loss) or not (math.isfinite(step.gradient_norm) or self._scaler.is_enabled()):
            raise PadimError(
                f"step {step.step}: the loss is {step.loss:g}, its gradient {step.gradient_norm:g}:"
                " train with a smaller --learning-rate, or --precision fp32"
            )
        return step


def _optimizer(network: CutPasteNetwork, config: CutPasteConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), rate, (config.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(network.parameters(), rate, config.momentum, weight_decay=decay)
