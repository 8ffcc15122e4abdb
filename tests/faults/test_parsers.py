"""Every parser of foreign bytes: a short run of tests/fuzz/fuzz.py, and the inputs that its long runs have found."""

from __future__ import annotations

import gc
import io
import json
import re
import signal
import time
import zipfile

import onnx
import pytest
import torch
from fuzz import fuzz
from onnx import TensorProto, helper
from oracles import fitted
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from padim import Padim, PadimError
from padim.cutpaste.config import CutPasteConfig
from padim.data.images import read_mask
from padim.data.items import Category
from padim.detectors.registry import load, read_config
from padim.errors import ImageError
from padim.scoring import AnomalyMap
from padim.tiles import Tiling
from padim.weights import digest, read_weights

INPUTS = 500
DEEP = "[" * 100_000

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of what is damaged


@pytest.fixture
def alarm():
    """The time limit of the fuzzer."""
    before = signal.signal(signal.SIGALRM, fuzz.hang)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def parsers(tmp_path_factory):
    return fuzz.parsers(tmp_path_factory.mktemp("parsers"))


@pytest.mark.slow
def test_damaged_files_of_every_kind_are_read_or_refused(parsers, alarm, tmp_path):
    for name, parser in parsers.items():
        for content in fuzz.inputs(parser, round(INPUTS * parser.share / 100), name):
            problem = fuzz.outcome(parser, tmp_path / parser.file, content).problem
            assert problem is None, (name, content[:1000], problem)


def test_valid_files_are_read(parsers, alarm, tmp_path):
    for name, parser in parsers.items():
        outcomes = [fuzz.outcome(parser, tmp_path / parser.file, content) for content in parser.examples]
        refused = 2 if name == "image" else 0  # images of 32 bits per channel, which can be masks
        assert [outcome.read for outcome in outcomes].count(False) == refused, name


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda path: {}[path], "KeyError"),
        (lambda path: time.sleep(30), r"\d\.\d s, \d+ MB"),
        (lambda path: b"a" * 4 * 10**8, r"\d\.\d s, \d\d\d MB"),
    ],
    ids=["another exception", "time", "memory"],
)
def test_the_fuzzer_notices_what_goes_wrong(alarm, tmp_path, monkeypatch, read, problem):
    for name, limit in (("SECONDS", 1), ("BYTES", 10**7)):
        monkeypatch.setattr(fuzz, name, limit)
    parser = fuzz.Parser(1, "file", [b""], None, read)
    gc.collect()  # what earlier tests leave could go in between
    assert re.search(problem, fuzz.outcome(parser, tmp_path / "file", b"").problem)


@pytest.mark.parametrize(
    "text",
    [
        "channels = " + "9" * 5000,
        "channels = 0x" + "f" * 5000,
        "method = 0x" + "f" * 5000,
        "seed = 18446744073709551616",
        "batch_size = 9223372036854775808",
        "a." * 30_000 + "a = 1",  # this took half a minute and gigabytes
        "resize = " + DEEP,
    ],
    ids=lambda text: text[:15],
)
def test_configurations_that_were_found(tmp_path, text):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(PadimError, match=r"config\.toml"):
        read_config(tmp_path / "config.toml")


def test_a_head_of_any_number_of_layers_is_refused():
    with pytest.raises(PadimError, match="head_layers: 1000000000 is out of range"):
        CutPasteConfig(head_layers=10**9)


def opened(path, name):
    """Tensors and header of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()[name])


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header["config"].update(seed=2**64),
        lambda header, tensors: header["config"].update(batch_size=2**63),
        lambda header, tensors: header["about"].update(images=10**30) or tensors.pop("normal.scores"),
        lambda header, tensors: header["about"].update(images=0) or tensors.update({"normal.scores": torch.zeros(0)}),
    ],
    ids=["seed", "batch size", "images", "no images"],
)
def test_models_that_were_found(random_weights, tmp_path, change):
    path = tmp_path / "model.safetensors"
    fitted(Padim(fuzz.SMALL, weights=random_weights), [torch.zeros(3, 3, 32, 32)]).save(path)
    tensors, header = opened(path, "padim")
    del header["sha256"]
    change(header, tensors)
    save_file(tensors, path, {"padim": json.dumps(header)})
    with pytest.raises(PadimError, match="a damaged model"):
        load(path)


@pytest.mark.parametrize(
    "values", [{"step": 10**400}, {"step": 1e308}, {"loss": 10**400}], ids=["step", "steps", "loss"]
)
def test_logs_of_checkpoints_that_were_found(tmp_path, values):
    """With such a log the training went on, and failed at the end, when the log was drawn."""
    path = tmp_path / "checkpoint.safetensors"
    fuzz.read_checkpoint(path)
    tensors, header = opened(path, "padim-checkpoint")
    header["rows"][0][0] |= values
    save_file(tensors, path, {"padim-checkpoint": json.dumps(header)})
    with pytest.raises(PadimError, match="is damaged: train without --resume"):
        fuzz.read_checkpoint(path)


def test_a_filter_as_wide_as_the_image_takes_no_time():
    """A model file of a few bytes could ask for hours of this before its tensors were looked at."""
    maps = AnomalyMap(Tiling.of((1024, 1024), (1024, 1024), (256, 256)), "bilinear", 1024.0)(torch.rand(1, 256, 256))
    assert maps.std() < 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a", lambda: torch.eye(3).to_sparse()),
        ("a", lambda: torch.empty(3, device="meta")),
        ("a", lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)),
        ("a", lambda: torch.zeros(1).expand(10**12)),
        (0, lambda: torch.zeros(3)),
    ],
    ids=["sparse", "meta", "quantized", "repeated", "key"],
)
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path, key, value):
    torch.save({key: value()}, tmp_path / "weights.pth")
    with pytest.raises(PadimError, match="are not a state dict"):
        read_weights(tmp_path / "weights.pth")


def test_parameters_are_weights(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(3))}, tmp_path / "weights.pth")
    assert digest(read_weights(tmp_path / "weights.pth")) == digest({"a": torch.ones(3)})


def test_compressed_weights_are_refused(tmp_path):
    stored = io.BytesIO()
    torch.save({"a": torch.zeros(10**6)}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(PadimError, match=r"a\.pth: compressed"):
        read_weights(tmp_path / "a.pth")


def without_images(model):
    model.graph.input[0].name = model.graph.node[0].input[0] = "another"


def without_scores(model):
    model.graph.output[0].name = model.graph.node[2].output[0] = "another"


def constant_input(model):
    del model.graph.input[:]
    model.graph.initializer.append(
        helper.make_tensor("images", TensorProto.UINT8, [1, 3, 32, 32], bytes(3 * 32 * 32), raw=True)
    )


def other_values(**values):
    def change(model):
        entry = model.metadata_props[0]
        entry.value = json.dumps(json.loads(entry.value) | values)

    return change


@pytest.mark.parametrize(
    "change",
    [
        without_images,
        without_scores,
        constant_input,
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT),
        lambda model: setattr(model.graph.node[1].attribute[0], "i", 1),  # keeps a dimension
        other_values(dimensions=-1),
        other_values(dimensions=10**400),
    ],
    ids=["input", "output", "no input", "type", "shape", "dimensions", "many dimensions"],
)
def test_exports_that_were_found(tmp_path, change):
    model = onnx.load_from_string(fuzz.onnx_file(None))
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PadimError):
        fuzz.read_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "other"), [(b"category", b"categor\xff"), (b"maps", b"map\xff"), (b"keepdims", b"keepdim\xff")]
)
def test_names_in_no_encoding_are_one_error_and_nothing_on_stdout(tmp_path, capfd, name, other):
    (tmp_path / "model.onnx").write_bytes(fuzz.onnx_file(None).replace(name, other))
    with pytest.raises(PadimError, match="damaged"):
        fuzz.read_onnx(tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""


FIGURES = {
    "image_auroc": 0.9,
    "pixel_auroc": None,
    "aupro": 0.5,
    "pixel_ap": 0.4,
    "pixel_f1_max": 0.3,
    "train": 8,
    "images": 3,
    "skipped": 0,
    "unmasked": 0,
    "seconds": 2.0,
    "images_per_second": 4.0,
    "peak_memory_gb": 0.5,
    "curves": {"image": [[0, 1], [0.5, 1]]},
    "environment": {"python": "3.12"},
}


@pytest.mark.parametrize(
    "change",
    [{"aupro": "0.5"}, {"aupro": []}, {"aupro": 10**400}, {"images": "3"}, {"images": None}, {"image_auroc": 1.5}],
    ids=str,
)
def test_results_that_were_found_are_made_again(tmp_path, change):
    run = fuzz.run_of(Category("bottle", [], []), tmp_path / "result.json")
    run.path.write_text(json.dumps({"key": run._key(), "figures": FIGURES}))
    assert run.result() == FIGURES
    run.path.write_text(json.dumps({"key": run._key(), "figures": FIGURES | change}))
    assert run.result() is None


@pytest.mark.parametrize("name", ["aupro", "images"])
def test_results_that_lack_a_figure_are_made_again(tmp_path, name):
    run = fuzz.run_of(Category("bottle", [], []), tmp_path / "result.json")
    figures = {key: value for key, value in FIGURES.items() if key != name}
    for text in (json.dumps({"key": run._key(), "figures": figures}), DEEP):
        run.path.write_text(text)
        assert run.result() is None


def list_of(tmp_path, name):
    path = tmp_path / "split_csv/1cls.csv"
    path.parent.mkdir()
    path.write_text(f"object,split,label,image,mask\na,train,normal,{name},\na,test,bad,{name},{name}\n")
    return path


def test_zero_bytes_in_a_list_of_images_are_an_error(tmp_path):
    with pytest.raises(PadimError, match=r"1cls\.csv: no path has a zero byte"):
        fuzz.read_list(list_of(tmp_path, "a\0b.png"))


def test_a_name_that_is_too_long_is_one_of_no_image(tmp_path):
    fuzz.read_list(list_of(tmp_path, "a" * 5000))  # the check reports what can't be read


def test_splinters_are_no_masks_either(tmp_path):
    Image.new("1", (8, 10_000)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match="too long and narrow"):
        read_mask(tmp_path / "mask.png")
