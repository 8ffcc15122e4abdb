"""What computes an exported graph: ONNX Runtime, or OpenVINO. Each is imported when it is asked for.

Both compute in float32 unless another precision is asked for by name. Left to themselves, OpenVINO takes bfloat16 on
processors that have it, and ONNX Runtime TensorFloat-32 on GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim.deploy.memory import bounded_arena, bounded_loading, files_beside
from padim.deploy.operators import check_operators
from padim.errors import PadimError, first_line
from padim.storage.files import utf8_path
from padim.system.machine import container_cores, cores

# Devices in the terms of the commands -> the execution providers of ONNX Runtime.
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}

# Precisions in the terms of the commands -> those of OpenVINO.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True)
class Session:
    """A graph that is ready to be computed.

    Attributes:
        header: what its metadata has under `padim`, if anything.
        sizes: height and width of each input, by name.
        outputs: the names of the outputs.
        run: the outputs of images `[n, 3, h, w]`, uint8; may be called from several threads.
    """

    header: str | None
    sizes: Mapping[str, Sequence[int]]
    outputs: Sequence[str]
    run: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]


def open_session(
    path: Path, *, engine: str = "onnxruntime", device: str = "cpu", precision: str = "fp32", threads: int = 0
) -> Session:
    """A graph from an ONNX file.

    Args:
        path: the file.
        engine: one of `ENGINES`.
        device: `cpu`, `cuda`, `tensorrt`, `directml` or `coreml` for ONNX Runtime, where `cuda:1` is the second GPU;
            `cpu`, `gpu`, `gpu.1` or `npu` for OpenVINO.
        precision: `fp32`; with OpenVINO `bf16` and `fp16` too, with ONNX Runtime `tf32` on `cuda`.
        threads: on the CPU; 0 are as many as there are cores.

    Raises:
        PadimError: the file can't be read or is damaged, or engine, device or precision are not to be had here.
    """
    if engine not in ENGINES:
        raise PadimError(f"there is no engine {engine!r}; there are {', '.join(ENGINES)}")
    on_cpu = re.split("[:.]", device.lower())[0] == "cpu"
    if on_cpu and container_cores():  # of which engines know nothing
        threads = threads or cores()
    try:
        check_operators(path)
        with utf8_path(path) as opened, bounded_loading(path) if on_cpu else nullcontext():
            return ENGINES[engine](opened, device, precision, threads)
    except PadimError:
        raise
    except OSError as error:
        raise PadimError(f"can't read the model {path}: {error.strerror or error}") from error
    except Exception as error:  # their classes are not public
        if not on_cpu:
            raise PadimError(f"{engine} can't load {path} on {device}: {first_line(error)}; try cpu") from error
        raise PadimError(
            f"{path} is damaged, not an ONNX model, or without the .data file that was written beside it"
        ) from error


def _onnxruntime(path: Path, device: str, precision: str, threads: int) -> Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise PadimError(f"exported models need ONNX Runtime: pip install onnxruntime ({first_line(error)})") from error
    kind, _, number = device.partition(":")
    available = onnxruntime.get_available_providers()
    here = [name for name, provider in _PROVIDERS.items() if provider in available]
    if kind not in here or not (number or "0").isdecimal():
        raise PadimError(f"the installed ONNX Runtime has no device {device!r}: it has {', '.join(here)}")
    if precision != "fp32" and (kind, precision) != ("cuda", "tf32"):
        raise PadimError(f"ONNX Runtime computes in fp32 on {kind}, not in {precision}")
    settings = {"device_id": number} if number else {}
    if kind == "cuda":
        settings["use_tf32"] = str(int(precision == "tf32"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are for those who read
    options.log_severity_level = 4  # errors are raised, and said once
    if kind == "cpu" and hasattr(options, "add_external_initializers_from_files_in_memory"):  # since 1.24
        # They are copied, and not bound to a file that may change.
        beside = {file.name: np.memmap(file, np.uint8, "r") for file in files_beside(path) if file.stat().st_size}
        sizes = [tensors.nbytes for tensors in beside.values()]
        options.add_external_initializers_from_files_in_memory([*beside], [*beside.values()], sizes)
    with bounded_arena(onnxruntime, options) if kind == "cpu" else nullcontext():
        session = onnxruntime.InferenceSession(
            path,
            options,
            providers=[(_PROVIDERS[kind], settings), _PROVIDERS["cpu"]][: 1 if kind == "cpu" else 2],
            enable_fallback=False,  # which would be said on stdout
        )
    if session.get_providers()[0] != _PROVIDERS[kind]:
        raise PadimError(f"ONNX Runtime can't start {device} here: are its driver and libraries installed?")
    return Session(
        session.get_modelmeta().custom_metadata_map.get("padim"),
        {value.name: value.shape[2:] for value in session.get_inputs()},
        [value.name for value in session.get_outputs()],
        lambda images: session.run(None, {"images": images}),
    )


def _openvino(path: Path, device: str, precision: str, threads: int) -> Session:
    try:
        import openvino
        from openvino.frontend import FrontEndManager
    except ImportError as error:
        raise PadimError(f"--engine openvino needs OpenVINO: pip install openvino ({first_line(error)})") from error
    core, name = openvino.Core(), device.upper()
    here = core.available_devices
    if name not in (*here, *(full.partition(".")[0] for full in here)):
        raise PadimError(f"OpenVINO finds no device {device!r} here: it has {', '.join(here).lower()}")
    if precision not in _HINTS:
        raise PadimError(f"OpenVINO computes in {', '.join(_HINTS)}, not in {precision}")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    frontend = FrontEndManager().load_by_framework("onnx")  # rather than whichever takes the file
    model = frontend.convert(frontend.load(path))
    compiled = core.compile_model(model, name, settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != _HINTS[precision]:
        raise PadimError(f"OpenVINO has no {precision} on this {device}, it would compute in {used}")
    return Session(
        model.get_rt_info(["framework", "padim"]).value if model.has_rt_info(["framework", "padim"]) else None,
        {value.get_any_name(): [*value.partial_shape][2:] for value in model.inputs},
        [value.get_any_name() for value in model.outputs],
        lambda images: [*compiled.create_infer_request().infer({"images": images}).values()],
    )


# Engine -> what opens a file with it: path, device, precision, threads.
ENGINES: dict[str, Callable[[Path, str, str, int], Session]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
