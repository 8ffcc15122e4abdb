"""The weights of backbones: downloaded, read from files, checked, and told apart by a digest."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from padim.errors import PadimError, first_line
from padim.networks import source_of

StateDict = Mapping[str, Tensor]
Weights = Path | str | StateDict

# What other frameworks write, by suffix; torch's own `.ckpt` is a zip archive.
_FOREIGN = {".pdparams": "a pickle of Paddle's", ".ckpt": "in MindSpore's format"}


def is_counter(key: str) -> bool:
    """Whether a key is BatchNorm's count of training batches, which inference has no use for."""
    return key.endswith("num_batches_tracked")


def constants(part: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """The buffers of a part of a network that don't come with its weights, as indices and tables of positions."""
    saved = network.state_dict()
    buffers = part.named_buffers(remove_duplicate=False)
    return {
        key: value for key, value in buffers if not (is_counter(key) or (key in saved and value.is_floating_point()))
    }


def matching(weights: StateDict, wanted: StateDict, name: str) -> dict[str, Tensor]:
    """What a network of a name wants of a state dict, which may hold more, in float32.

    Raises:
        PadimError: a wanted key is missing, has another shape or holds values that are not finite.
    """
    taken = {}
    for key, expected in wanted.items():
        if key not in weights:
            raise PadimError(f"the weights for {name} have no key {key!r}")
        found = weights[key]
        if found.shape != expected.shape:
            shapes = f"{list(found.shape)}, expected {list(expected.shape)}"
            raise PadimError(f"the weights for {name} have {key!r} of shape {shapes}")
        taken[key] = found.float()
        if not bool(taken[key].isfinite().all()):
            raise PadimError(f"the weights for {name} have values in {key!r} that are not finite")
    return taken


def digest(weights: StateDict) -> str:
    """SHA-256 of names, shapes and float32 values, whatever file or order they come in."""
    sha = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].float().cpu().contiguous()
        sha.update(f"{key} {list(value.shape)}\n".encode())
        sha.update(value.numpy().data)
    return sha.hexdigest()


def weights_from(weights: Weights | None, backbone: str) -> StateDict:
    """Weights as they are, from their file, or by default the published ones.

    Raises:
        PadimError: they can't be read or downloaded.
    """
    if weights is None:
        return download_weights(backbone)
    return read_weights(Path(weights)) if isinstance(weights, Path | str) else weights


def read_weights(path: Path) -> StateDict:
    """A state dict from a `.safetensors` or a `.pth` file; the latter is never allowed to run code.

    Raises:
        PadimError: the file can't be read, or is something else than a state dict.
    """
    if path.suffix in _FOREIGN and path.is_file() and not zipfile.is_zipfile(path):
        raise PadimError(
            f"the weights {path} are {_FOREIGN[path.suffix]}, which stays unread: convert them once, as"
            " 'Weights of other frameworks' in docs/guide/weights-and-configuration.md shows"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        if _is_compressed(path):
            raise ValueError("compressed, which torch never does and which could fill the memory")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of files that it did not write
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PadimError(f"can't read the weights {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise PadimError(f"refused the weights {path}: not a plain state dict, or damaged") from error
    except Exception as error:  # a damaged file can fail anywhere in the readers
        raise PadimError(f"can't read the weights {path}: {first_line(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) and _is_plain(weights[key]) for key in weights):
        raise PadimError(f"the weights {path} are not a state dict (names -> tensors)")
    return {key: value.detach() for key, value in weights.items()}


def _is_compressed(path: Path) -> bool:
    """Whether a file is a zip archive of compressed entries."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor that has all of its numbers, and neither a sparse one nor the like."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type, value.is_quantized) == (torch.strided, "cpu", False)
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def download_weights(name: str) -> StateDict:
    """The published weights of a backbone, from the local cache where they are there already.

    Raises:
        PadimError: they can't be had; the message says how to get them elsewhere.
    """
    source = source_of(name)
    try:
        return source.weights()
    except PadimError:
        raise
    except Exception as error:  # network, disk, digest, a damaged cache, or there are none
        raise PadimError(
            f"can't get the weights from {source.url} ({first_line(error)}): fetch that file on a machine"
            " with a network and pass it with --weights FILE"
        ) from error
