"""ResNet18 with a projection head, and SSPCAB where it is asked for."""

from __future__ import annotations

import logging
from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from padim.cutpaste.augment import CLASSES
from padim.cutpaste.config import CutPasteConfig
from padim.cutpaste.sspcab import SSPCAB
from padim.extractor import Normalisation
from padim.weights import StateDict, is_counter, matching

log = logging.getLogger(__name__)

EMBEDDING = 512  # channels of ResNet18's last layer
_PROJECTION = 128


class CutPasteNetwork(nn.Module):
    """Embeddings of images, and which class of augmentation they look like.

    Attributes:
        resnet: the backbone.
        sspcab: the predictive block, or None.
        place: where it stands: `none`, `before-layer4`, or as the first convolution of its `last-block`.
        head: the projection, `head_layers` times 512 and then 128 wide, each with BatchNorm and ReLU.
        classes: the classifier.
        pretrained: names of the parameters that came with the weights.
    """

    def __init__(self, config: CutPasteConfig) -> None:
        """A network with random weights that depend on the configuration's seed alone."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.normalise = Normalisation()
            self.resnet = torchvision.models.resnet18()
            self.resnet.fc = nn.Identity()
            widths = [EMBEDDING] * (config.head_layers + 1) + [_PROJECTION]
            self.head = nn.Sequential(
                *(
                    nn.Sequential(nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU())
                    for wide, narrow in pairwise(widths)
                )
            )
            self.classes = nn.Linear(_PROJECTION, len(CLASSES[config.variant]))
            self.sspcab: SSPCAB | None = None
            self.place = config.sspcab
            if self.place == "before-layer4":
                self.sspcab = SSPCAB(256)
            elif self.place == "last-block":
                self.sspcab = SSPCAB(EMBEDDING)
                self.resnet.layer4[1].conv1 = nn.Identity()
        self.pretrained: frozenset[str] = frozenset()

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `[n, 512]` of RGB images `[n, 3, h, w]`, and the mean squared error of SSPCAB, `[]`."""
        net = self.resnet
        maps = self.normalise(images).contiguous(memory_format=torch.channels_last)
        maps = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(maps)))))))
        error = maps.new_zeros(())
        if self.place == "before-layer4":
            maps, error = self._predicted(maps)
        first, last = net.layer4
        maps = first(maps)
        if self.place == "last-block":
            predicted, error = self._predicted(maps)
            maps = F.relu(maps + last.bn2(last.conv2(F.relu(last.bn1(predicted)))))
        else:
            maps = last(maps)
        return maps.float().mean(dim=(2, 3)), error

    def _predicted(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """What SSPCAB predicts of maps `[n, c, h, w]`, and its mean squared error, `[]`."""
        assert self.sspcab is not None
        predicted = self.sspcab(maps)
        return predicted, F.mse_loss(predicted, maps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[n, classes]` of RGB images `[n, 3, h, w]`, and SSPCAB's error, `[]`."""
        embeddings, error = self.embed(images)
        return self.classes(self.head(embeddings)), error

    def load_pretrained(self, weights: StateDict) -> None:
        """Take the backbone's weights; layers of them that were never trained are named in a warning.

        Raises:
            PadimError: a key is missing, or one has another shape or values that are not finite.
        """
        wanted = {key: value for key, value in self.resnet.state_dict().items() if not is_counter(key)}
        taken = matching(weights, wanted, "resnet18")
        self.resnet.load_state_dict(taken, strict=False)
        means = [key for key in taken if key.endswith("running_mean")]  # 0 until BatchNorm has seen an image
        fresh = sorted({key.split(".")[0] for key in means if not bool(taken[key].any())})
        if fresh:
            log.warning("the weights were never trained in %s: say so beside the figures", ", ".join(fresh))
        self.pretrained = frozenset(f"resnet.{key}" for key, _ in self.resnet.named_parameters() if key in taken)
