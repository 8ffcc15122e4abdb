"""The benchmark of inference: exported and unexported models of this project beside those of its peers.

    python scripts/measure/inference.py --data ROOT --weights FILE [--anomalib PYTHON] [--anomavision PYTHON]
        [--runs 3] [--images N] [--work DIR] [--output FILE.json] [--picture FILE.png]

Every contender of `predictors.py` runs in a process of its own on two cores, in turn; memory, start and images per
second are medians over the runs, percentiles are over the batches of all runs. `--anomalib` and `--anomavision` are the
Pythons of environments with these in them; what is missing is left out and named. The script prints Markdown;
`--output` keeps every single run as JSON. `--work` keeps the models, which the next call then takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from predictors import BATCHES, CONTENDERS, THREADS, Contender, test_images

from padim import __version__, find_category
from padim.config import preset_path
from padim.data.loader import ImageLoader
from padim.data.transform import Transform
from padim.detectors.registry import read_config
from padim.evaluation.metrics import measure
from padim.system.machine import cpu_model, multiplies_bfloat16

SCRIPT = Path(__file__).with_name("predictors.py")
PRESETS = {224: "pytorch-r18", 256: "anomalib-r18"}  # by the side of the maps: how masks get there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root with MVTec AD's bottle")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's ResNet18")
    parser.add_argument("--anomalib", type=Path, metavar="PYTHON")
    parser.add_argument("--anomavision", type=Path, metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, metavar="N", help="time N of the test images (default: all)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of the models (default: a temporary one)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).resolve()
        result = compared(options)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.picture:
        draw(result["contenders"], options.picture)
    print(markdown(result))


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, and of each contender what it is, its medians and its runs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # which the processes inherit
    pythons = {"ours": Path(sys.executable), "anomalib": options.anomalib, "anomavision": options.anomavision}
    problems = {name: problem(contender, pythons) for name, contender in CONTENDERS.items()}
    for name, why in problems.items():
        if why:
            print(f"left out: {name}, {why}", file=sys.stderr)
    chosen = {name: contender for name, contender in CONTENDERS.items() if not problems[name]}
    machine = {"date": str(date.today()), "cpu": cpu_model(), "cores": THREADS, "python": platform.python_version()}
    machine |= {"padim": __version__, "load before": round(os.getloadavg()[0], 1)}
    common = ["--data", str(options.data.resolve()), "--work", str(options.work)]
    weights = ["--weights", str(options.weights.resolve())]
    for family in dict.fromkeys(contender.family for contender in chosen.values()):
        if not all((options.work / family / one.file).exists() for one in chosen.values() if one.family == family):
            start(pythons[family], family, ["prepare", family, *common, *weights], options.work, sys.stderr).wait()
    found: dict[str, dict[str, Any]] = {}
    for name, (family, file, *_) in chosen.items():
        start(pythons[family], family, ["maps", name, *common], options.work, sys.stderr).wait()
        path = options.work / family / file
        size = sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.*"))
        found[name] = {"bytes": size, **aurocs(options.data, options.work / f"{name}.npz"), "runs": []}
    images = ["--images", str(options.images)] if options.images else []
    for _ in range(options.runs):
        for name, contender in chosen.items():
            arguments = ["speed", name, *common, *images]
            found[name]["runs"].append(timed(pythons[contender.family], contender.family, arguments, options.work))
    return {"machine": machine, "contenders": {name: of | medians(of["runs"]) for name, of in found.items()}}


def problem(contender: Contender, pythons: dict[str, Path | None]) -> str | None:
    """Why a contender can't be compared here, if so."""
    if not pythons[contender.family]:
        return f"since --{contender.family} isn't given"
    if "bf16" in contender.settings.values() and not multiplies_bfloat16():
        return "since this processor doesn't multiply bfloat16"
    if contender.settings.get("engine") == "openvino" and not find_spec("openvino"):
        return "since OpenVINO isn't installed"
    return None


def start(python: Path, family: str, arguments: list[str], work: Path, stdout: Any) -> subprocess.Popen[str]:
    """A process of one family, in its folder, with padim within reach only where it is needed."""
    folder = work / family
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)) if family == "ours" else ""}
    command = [str(python.absolute()), str(SCRIPT), *arguments]
    return subprocess.Popen(command, stdout=stdout, text=True, env=environment, cwd=folder)


def timed(python: Path, family: str, arguments: list[str], work: Path) -> dict[str, Any]:
    """One run: the seconds until its first line, and what its last one says."""
    begin = time.perf_counter()
    with start(python, family, arguments, work, subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - begin
        return {"start_seconds": seconds, **json.loads(process.stdout.read())}


def aurocs(data: Path, path: Path) -> dict[str, float | None]:
    found = np.load(path)
    labels, masks = truth(data, PRESETS[found["maps"].shape[1]])
    metrics = measure(labels, found["scores"], masks, found["maps"])
    return {"image_auroc": metrics.image_auroc, "pixel_auroc": metrics.pixel_auroc}


@cache
def truth(data: Path, preset: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of the test images `[n]` and which of their pixels `[n, h, w]` are defective."""
    transform = Transform.of(read_config(preset_path(preset)))
    samples = list(ImageLoader(find_category(data, "bottle").test, transform, workers=THREADS))
    assert [sample.item.path for sample in samples] == test_images(data)
    return np.array([sample.item.anomalous for sample in samples]), np.stack([sample.mask for sample in samples])


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all runs; in the runs, percentiles take the place of the single batches."""
    versions = [run.pop("versions") for run in runs]
    found: dict[str, Any] = {"versions": versions[0]}
    for key in ("start_seconds", "first_memory_bytes", "peak_memory_bytes"):
        found[key] = statistics.median(run[key] for run in runs)
    for source in ("files", "photos"):
        found[source] = dict.fromkeys(map(str, BATCHES))  # null: no such batches
        for count in runs[0][source]:
            times = [run[source][count].pop("milliseconds") for run in runs]
            rate = statistics.median(run[source][count]["images_per_second"] for run in runs)
            found[source][count] = {**percentiles([*chain(*times)]), "images_per_second": rate}
            for run, milliseconds in zip(runs, times, strict=True):
                run[source][count] |= percentiles(milliseconds)
    return found


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    return dict(zip(("p50", "p99"), np.percentile(milliseconds, (50, 99)).tolist(), strict=True))


def markdown(result: dict[str, Any]) -> str:
    contenders = result["contenders"]
    lines = [", ".join(f"{key} {value}" for key, value in result["machine"].items())]
    families = {CONTENDERS[name].family: of["versions"] for name, of in contenders.items()}
    lines += [f"{family}: " + ", ".join(map(" ".join, versions.items())) for family, versions in families.items()]
    columns = ["image AUROC", "pixel AUROC", "model", "first verdict", "memory, first verdict", "memory, files"]
    lines += ["", *header(["contender", *columns])]
    for name, of in contenders.items():
        memory = [f"{of[key] / 1e6:.0f} MB" for key in ("first_memory_bytes", "peak_memory_bytes")]
        size, first = f"{of['bytes'] / 1e6:.1f} MB", f"{of['start_seconds']:.2f} s"
        lines.append(row([name, f"{of['image_auroc']:.4f}", f"{of['pixel_auroc']:.4f}", size, first, *memory]))
    for source in ("files", "photos"):
        columns = [f"{count}: {what}" for count in BATCHES for what in ("median", "99 %", "images/s")]
        lines += ["", *header([f"from {source} to verdicts, ms per batch", *columns])]
        lines += [row([name, *cells(of[source].values())]) for name, of in contenders.items()]
    return "\n".join(lines)


def cells(batches: Iterable[dict[str, float] | None]) -> list[str]:
    shown = [
        [f"{of['p50']:.1f}", f"{of['p99']:.1f}", f"{of['images_per_second']:.1f}"] if of else ["-"] * 3
        for of in batches
    ]
    return [*chain(*shown)]


def header(columns: list[str]) -> list[str]:
    return [row(columns), row(["---", *["---:"] * (len(columns) - 1)])]


def row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def draw(contenders: dict[str, Any], path: Path) -> None:
    """Milliseconds from one file to its verdict against image AUROC."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(dict.fromkeys(one.family for one in CONTENDERS.values()), ("C0", "C1", "C2"), strict=True))
    slowest_last = sorted(contenders.items(), key=lambda entry: entry[1]["files"]["1"]["p50"])
    for number, (name, of) in enumerate(slowest_last):
        point, colour = (of["files"]["1"]["p50"], of["image_auroc"]), colours[CONTENDERS[name].family]
        axes.plot(*point, "o", color=colour)
        place, line = (8, 14 + 13 * (number % 4)), {"arrowstyle": "-", "color": colour, "lw": 0.5}
        axes.annotate(name, point, place, textcoords="offset points", fontsize=8, color=colour, arrowprops=line)
    axes.set(xscale="log", xlabel="milliseconds from one file to its verdict (median)", ylabel="image AUROC, bottle")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
