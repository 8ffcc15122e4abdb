"""Modules of torch as ONNX graphs, in the classes of onnx_ir."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from padim.errors import PadimError

# Tensors of fewer numbers stay in float32: they are next to nothing.
_FEW = 1024


def check_packages() -> None:
    """Raise a PadimError if a package is missing that exporting needs."""
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise PadimError("exporting needs more packages: pip install 'padim-toolkit[onnx]'") from error


class _Function(nn.Module):
    """A function of tensors that computes with a module."""

    def __init__(self, module: nn.Module, function: Callable[..., Sequence[Tensor | None]]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function gives, but for what is None."""
        return tuple(tensor for tensor in self._function(*tensors) if tensor is not None)


def graph_of(
    module: nn.Module,
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    images: int = 0,
) -> Any:
    """A function that computes with a module as an ONNX model, for any number of images.

    Args:
        module: in evaluation mode.
        function: from tensors to tensors; what is None among these is left out.
        inputs: examples of what it takes, by the names that the inputs will have.
        outputs: the names of the outputs.
        images: the dimension of the inputs that counts the images.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks are for its authors
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Function(module, function).eval(),
            (*inputs.values(),),
            dynamo=True,
            input_names=[*inputs],
            output_names=[*outputs],
            dynamic_shapes=(tuple({images: torch.export.Dim.DYNAMIC} for _ in inputs),),
            verbose=False,
        )
    assert program is not None
    # The exporter notes the lines of code behind every node, with the paths they have on this machine.
    return ClearMetadataAndDocStringPass()(program.model).model


def joined(first: Any, second: Any) -> Any:
    """The first of two models, continued by the second one, whose inputs are its outputs."""
    graph, more = first.graph, second.graph
    for value, given in zip(more.inputs, graph.outputs, strict=True):
        value.replace_all_uses_with(given)
    tensors, nodes, outputs = [*more.initializers.values()], [*more], [*more.outputs]
    more.initializers.clear()
    more.outputs.clear()
    more.remove(nodes)
    own = [value for node in nodes for value in node.outputs if value not in outputs]
    for named in (*tensors, *nodes, *own):
        named.name = f"second.{named.name}"
    for tensor in tensors:
        graph.register_initializer(tensor)
    graph.extend(nodes)
    graph.outputs[:] = outputs
    return first


def halve(model: Any) -> None:
    """Keep large tensors in half precision, with a cast to float32 behind each; those that overflow stay."""
    import onnx_ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _FEW:
            continue
        with np.errstate(over="ignore"):
            half = tensor.numpy().astype(np.float16)
        if not np.isfinite(half).all():
            continue
        stored = onnx_ir.val(f"{name}.fp16", const_value=onnx_ir.tensor(half, name=f"{name}.fp16"))
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT.value})
        cast.outputs[0].name = f"{name}.fp32"
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)
