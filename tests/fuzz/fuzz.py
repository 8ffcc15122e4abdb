"""Every parser of foreign bytes, fed with damaged files: each is read or refused, in little time and memory.

    python tests/fuzz/fuzz.py [--inputs 100000] [--seed 0] [--only NAME ...] [--findings DIR]

The script prints a table in Markdown. An input that ends in anything but a result or a PadimError, or that takes too
much time or memory, is kept in DIR with the reason, and the exit code is 1. An input that kills the process stays in
a folder there.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import onnx.helper
import onnx.parser
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn
from tqdm import tqdm

from padim import Config, CutPaste, CutPasteConfig, FitOptions, Padim, PadimError, Runtime
from padim.calibration import Thresholds
from padim.cutpaste.checkpoint import CHECKPOINT
from padim.cutpaste.training import train
from padim.data.check import check_category
from padim.data.images import read_image, read_mask
from padim.data.items import Category
from padim.data.layouts import categories, find_category
from padim.data.transform import Transform
from padim.deploy.stream import Record
from padim.detectors.registry import load, read_config
from padim.detectors.scores import Scorer
from padim.extractor import Backbone
from padim.report.colours import ColourScale
from padim.reproduction.experiments import Experiment
from padim.reproduction.figures import table_figures
from padim.reproduction.formats import as_csv
from padim.reproduction.runs import Run
from padim.reproduction.tables import ExperimentTable, full_table
from padim.storage.files import check_writable
from padim.storage.provenance import Provenance
from padim.system.progress import silent
from padim.weights import digest, read_weights

SECONDS, BYTES = 30, 2**31  # an image of 179 million pixels takes so much, and a small file can hold one

SMALL = Config(channels=4, resize=(32,), crop=(32,), layers=("layer1",))
TRAINING = CutPasteConfig(
    initial="random", resize=(32, 32), scar_width=(2, 3), scar_height=(4, 8), training_batch=2, steps=1
)
TRANSFORM = Transform.of(SMALL)
PROVENANCE = Provenance("category", 3, 0.01, "", "")

# These take the place of bytes, and of values.
PIECES = (b"", b"\0", b"\xff" * 8, b"\n", b'"', b"[" * 5000, b"9" * 5000, b"0x" + b"f" * 5000, b"a." * 5000, b"\r,")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 0.5, -2.5, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, 10**30, 10**400),
    *("", "\0", "..", "a\nb", "\ud800", "cutpaste", "kernel", "layer4", "bf16", "F16", "I32", "C64", "F8_E8M0", "F4"),
    *([], [0], [8192, 8192], [[1]], {}, {"a": 1}),
)


class Parser(NamedTuple):
    """How one kind of file is made, damaged and read.

    Attributes:
        share: its share of all inputs, in percent.
        file: the path of a file below a folder.
        examples: valid contents.
        change: puts wrong values into a content whose structure is known.
        read: does what the commands do with the file.
    """

    share: float
    file: str
    examples: list[bytes]
    change: Callable[[random.Random, bytes], bytes] | None
    read: Callable[[Path], object]


class Hang(BaseException):
    """Time is up; no parser can mistake this for a damaged file."""


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes of which some are overwritten, cut out, put in or repeated, mostly at the front, where headers are."""
    result = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start, other = (int(len(result) * draw.random() ** 3) for _ in range(2))
        size = draw.choice((0, 1, 1, 2, 4, 8, 64, len(result)))
        result[start : start + size] = draw.choice(
            (draw.randbytes(min(size, 64)), draw.choice(PIECES), result[other : other + size])
        )
    return bytes(result)


def changed(draw: random.Random, value: Any) -> Any:
    """A JSON value of which one part is replaced or removed."""
    places = list(_places(value))
    container, key = draw.choice(places)
    kind = draw.random()
    if kind < 0.2 and isinstance(container, dict):
        del container[key]
    elif kind < 0.4:
        other, other_key = draw.choice(places)
        container[key] = json.loads(json.dumps(other[other_key]))
    else:
        container[key] = draw.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every part of a JSON value, as its container and its key in there."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def change_json(draw: random.Random, content: bytes) -> bytes:
    return json.dumps(changed(draw, json.loads(content))).encode()


def change_line(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = change_json(draw, lines[number])
    return b"\n".join(lines)


def change_toml(draw: random.Random, content: bytes) -> bytes:
    """A TOML file with one other value, written as JSON, which is TOML too except for null and objects."""
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    name, _ = lines[number].split(" = ")
    lines[number] = f"{name} = {json.dumps(draw.choice(VALUES)).replace('NaN', 'nan').replace('Infinity', 'inf')}"
    return "\n".join(lines).encode()


def change_safetensors(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header: dtypes, shapes, offsets, and the JSON in its metadata."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    name = next(iter(metadata), None)
    if name and draw.random() < 0.7:
        inner = json.loads(metadata[name])
        inner.pop("sha256", None)  # which a hostile writer would get right
        metadata[name] = json.dumps(changed(draw, inner))
    else:
        changed(draw, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def change_onnx(draw: random.Random, content: bytes) -> bytes:
    """An ONNX file with another JSON in its metadata."""
    model = onnx.load_from_string(content)
    model.metadata_props[0].value = json.dumps(changed(draw, json.loads(model.metadata_props[0].value)))
    return bytes(model.SerializeToString())


def read_model(path: Path) -> None:
    detector = load(path)
    images = torch.zeros(2, 3, *detector.config.image_size, dtype=torch.uint8)
    colours_of(detector)
    detector.score(images)
    if isinstance(detector, Padim) and detector.moments:
        detector.fit([images], FitOptions(update=True))


def read_onnx(path: Path) -> None:
    runtime = Runtime.load(path, threads=1)
    colours_of(runtime)
    runtime.score_image(Image.new("RGB", (40, 40)))


def colours_of(scorer: Scorer) -> ColourScale:
    thresholds = Thresholds.calibrated(scorer.calibration, scorer.provenance.false_alarm_rate)
    return ColourScale.about(thresholds.threshold, scorer.dimensions)


def read_backbone(path: Path) -> None:
    weights = read_weights(path)
    digest(weights)
    backbone = Backbone(SMALL.backbone, SMALL.layers, SMALL.image_size)
    backbone.load_weights(weights)


def read_list(path: Path) -> None:
    root = path.parents[1]
    for name in categories(root):
        check_writable(root / name)
        category = find_category(root, name)
        check_category(root, category, workers=1)
        run_of(category, path)._key()


def run_of(category: Category, path: Path) -> Run:
    return Run(Experiment("pytorch-r18", SMALL), category, "", path)


def read_result(path: Path) -> None:
    run = run_of(Category("bottle", [], []), path)
    figures = run.result()
    if figures is not None:
        table = ExperimentTable(run.experiment, "", {"bottle": [figures]})
        as_csv([table])
        full_table(table)
        table_figures(table.rows, table.results)


def read_record(path: Path) -> None:
    with Record(path) as record:
        record.add({"name": "new.png", "bytes": 1, "modified_ns": 1})


class SmallNetwork(nn.Module):
    """Stands in for the network of CutPaste, whose checkpoints have 90 MB."""

    pretrained: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classes(images.float().mean(dim=(2, 3))), torch.zeros(())


def read_checkpoint(path: Path) -> None:
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    options = FitOptions(folder=path.parent, resume=path.exists())
    train(SmallNetwork(), TRAINING, images, "", options, lambda: 0.0, silent)


def image_files() -> list[bytes]:
    """Images of every format, and of every mode that is read in a way of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8), dtype=np.uint8)
    grey = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *((name, mode, {}) for name in ("PNG", "TIFF", "GIF", "BMP", "TGA") for mode in ("L", "RGB", "P", "1", "RGBA")),
        *((name, "RGB", {"exif": exif}) for name in ("JPEG", "PNG", "TIFF", "WEBP")),
        *(("TIFF", mode, {}) for mode in ("I;16", "I", "F", "LAB", "CMYK", "YCbCr", "PA", "LA")),
        *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        *(("PNG", mode, {"transparency": 0}) for mode in ("L", "P", "1")),
        *[("PNG", "LA", {}), ("PNG", "I;16", {}), ("JPEG", "CMYK", {}), ("PPM", "RGB", {}), ("JPEG2000", "RGB", {})],
    ]
    files = []
    for name, mode, options in kinds:
        image = Image.fromarray(pixels.astype(np.uint16) * 200) if mode == "I;16" else grey
        with io.BytesIO() as file:
            (Image.new(mode, (9, 8)) if mode == "LAB" else image.convert(mode)).save(file, name, **options)
            files.append(file.getvalue())
    return files


# An exported model with a mean in the place of the network.
GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
model (uint8[n, 3, 32, 32] images) => (float[n] scores, float[n, 32, 32] maps)
<int64[1] channels = {1}, int64[2] sides = {1, 2}>
{
    floats = Cast <to = 1> (images)
    maps = ReduceMean <keepdims = 0> (floats, channels)
    scores = ReduceMax <keepdims = 0> (maps, sides)
}
"""


def onnx_file(pixels: list[float] | None) -> bytes:
    """An exported model with these quantiles of the maps."""
    model = onnx.parser.parse_model(GRAPH)
    header = {"version": 1, "config": SMALL.to_dict(), "about": dataclasses.asdict(PROVENANCE)}
    header |= {"dimensions": 4, "calibration": {"scores": [1.0, 2.0], "pixels": pixels}}
    onnx.helper.set_model_props(model, {"padim": json.dumps(header)})
    return bytes(model.SerializeToString())


def model_files(folder: Path, weights: dict[str, torch.Tensor]) -> tuple[list[bytes], list[bytes]]:
    """Model files of PaDiM, without and with moments, and of CutPaste, with either density."""
    images = [torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)]
    files: tuple[list[bytes], list[bytes]] = ([], [])
    path = folder / "model.safetensors"
    for keep in (False, True):
        padim = Padim(SMALL, weights=weights)
        padim.fit(images, FitOptions(keep_moments=keep))
        padim.save(path)
        files[0].append(path.read_bytes())
    for density in ("gaussian", "kernel"):
        cutpaste = CutPaste(dataclasses.replace(TRAINING, steps=0, density=density))
        cutpaste.fit(images)
        cutpaste.save(path, FitOptions(storage="fp16"))
        files[1].append(path.read_bytes())
    return files


def parsers(folder: Path) -> dict[str, Parser]:
    """All parsers, by name; the examples are written to `folder` on the way."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().state_dict()
    needed = {key: value for key, value in resnet.items() if key.startswith(("conv1", "bn1", "layer1"))}
    padim_files, cutpaste_files = model_files(folder, needed)
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(needed, zipped)
    torch.save(needed, legacy, _use_new_zipfile_serialization=False)
    read_checkpoint(folder / CHECKPOINT)
    run = run_of(Category("bottle", [], []), folder / "result.json")
    counts = {"train": 3, "images": 3, "skipped": 0, "unmasked": 0}
    metrics = {"image_auroc": 0.9, "pixel_auroc": None, "aupro": 0.5, "pixel_ap": 0.5, "pixel_f1_max": None}
    costs = {"seconds": 1.5, "images_per_second": 9.25, "peak_memory_gb": 0.5}
    what = {"curves": {"images": [[0.0, 0.1, 1.0], [0.0, 0.9, 1.0]]}, "environment": {"torch": "2.6.0"}}
    figures = metrics | counts | costs | what
    lines = [json.dumps({"name": f"{n}.png", "bytes": n, "modified_ns": n, "score": 0.5}).encode() for n in range(3)]
    rows = ["object,split,label,image,mask", "a,train,normal,a/1.png,", 'b,test,"bad, or so",b/2.png,b/2m.png']
    images = image_files()
    return {
        "configuration": Parser(
            20,
            "config.toml",
            [SMALL.to_toml().encode(), TRAINING.to_toml().encode()],
            change_toml,
            lambda path: read_config(path).to_toml(),
        ),
        "model, PaDiM": Parser(4, "model.safetensors", padim_files, change_safetensors, read_model),
        "model, CutPaste": Parser(0.5, "model.safetensors", cutpaste_files, change_safetensors, read_model),
        "model, ONNX": Parser(12, "model.onnx", [onnx_file(None), onnx_file([1.0] * 601)], change_onnx, read_onnx),
        "weights, .safetensors": Parser(
            5, "weights.safetensors", [safetensors.torch.save(needed)], change_safetensors, read_backbone
        ),
        "weights, .pth": Parser(5, "weights.pth", [zipped.getvalue(), legacy.getvalue()], None, read_backbone),
        "checkpoint": Parser(
            7.5, CHECKPOINT, [(folder / CHECKPOINT).read_bytes()], change_safetensors, read_checkpoint
        ),
        "list of images": Parser(8, "split_csv/1cls.csv", ["\n".join(rows).encode()], None, read_list),
        "record": Parser(8, "watched.jsonl", [b"\n".join(lines)], change_line, read_record),
        "result": Parser(
            8, "result.json", [json.dumps({"key": run._key(), "figures": figures}).encode()], change_json, read_result
        ),
        "image": Parser(14, "image", images, None, lambda path: TRANSFORM.image(read_image(path))),
        "mask": Parser(8, "mask", images, None, lambda path: TRANSFORM.mask(read_mask(path))),
    }


class Outcome(NamedTuple):
    """How a parser dealt with an input.

    Attributes:
        read: whether the input was taken for a valid file.
        seconds: how long that took.
        memory: by how many bytes the process grew at most.
        problem: what is wrong with that, if anything.
    """

    read: bool
    seconds: float
    memory: int
    problem: str | None


def outcome(parser: Parser, path: Path, content: bytes) -> Outcome:
    """How a parser deals with one input, which is written to a path."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    read, problem = False, None
    before, start = memory(), time.perf_counter()
    signal.alarm(SECONDS)
    try:
        parser.read(path)
        read = True
    except PadimError:
        pass
    except (Exception, Hang) as error:
        problem = "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.alarm(0)
    seconds, grown = time.perf_counter() - start, max(0, memory("VmHWM") - before)
    if seconds > SECONDS or grown > BYTES:
        problem = f"{seconds:.1f} s, {grown / 1e6:.0f} MB"
    return Outcome(read, seconds, grown, problem)


def memory(name: str = "VmRSS") -> int:
    """Bytes that this process has, or by `VmHWM` the most that it has had since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def inputs(parser: Parser, count: int, seed: str) -> Iterator[bytes]:
    """Damaged files."""
    draw = random.Random(seed)
    for _ in range(count):
        content = draw.choice(parser.examples)
        if parser.change and draw.random() < 0.6:
            yield parser.change(draw, content)
        elif draw.random() < 0.05:
            yield draw.randbytes(draw.randrange(200))
        else:
            yield damaged(draw, content)


def hang(*_: object) -> NoReturn:
    raise Hang


def prepare() -> None:
    """Set limits that stop a blow-up or an endless loop, and silence what is said of damage."""
    logging.disable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (8 * BYTES, 8 * BYTES))
    torch.set_num_threads(1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inputs", type=int, default=100_000, metavar="N")
    arguments.add_argument("--seed", type=int, default=0, metavar="N")
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="parsers, by their names in the table")
    arguments.add_argument("--findings", type=Path, default=Path("findings"), metavar="DIR")
    options = arguments.parse_args()
    prepare()
    options.findings.mkdir(parents=True, exist_ok=True)
    found = False
    print("| parser | inputs | read | refused | slowest | most memory |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=options.findings) as folder:
        there = parsers(Path(folder))
        if unknown := set(options.only or []) - set(there):
            arguments.error(f"there is no parser {', '.join(unknown)}; there are: {', '.join(map(repr, there))}")
        for name, parser in there.items():
            if name not in (options.only or there):
                continue
            path = Path(folder, parser.file)
            outcomes = []
            count = max(1, round(options.inputs * parser.share / 100))
            for content in tqdm(inputs(parser, count, f"{options.seed} {name}"), name, count, unit="input"):
                outcomes.append(outcome(parser, path, content))
                if outcomes[-1].problem:
                    found = True
                    title = f"{name}, seed {options.seed}, input {len(outcomes)}"
                    (options.findings / f"{title}{path.suffix}").write_bytes(content)
                    (options.findings / f"{title}.txt").write_text(f"{outcomes[-1].problem}\n")
            read = sum(one.read for one in outcomes)
            slowest, most = max(one.seconds for one in outcomes), max(one.memory for one in outcomes)
            print(f"| {name} | {count} | {read} | {count - read} | {slowest:.2f} s | {most / 1e6:.0f} MB |", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
