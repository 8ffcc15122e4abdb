"""The benchmark of inference: the models of this project beside those of its peers.

    python scripts/measure/inference.py --data ROOT --weights FILE [--anomalib PYTHON] [--anomavision PYTHON]
        [--runs 3] [--work DIR] [--output FILE.json] [--picture FILE.png]

Every contender of `predictors.py` runs in a process of its own on two cores, in turn. Percentiles are of the batches of
all runs, everything else is the median of the runs. `--anomalib` and `--anomavision` are the Pythons of environments
with these in them; contenders that can't run are left out and named. The script prints Markdown; `--output` keeps every
single run as JSON, and `--work` the models, which the next call then takes.
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
PRESETS = {224: "pytorch-r18", 256: "anomalib-r18"}  # side of the maps -> how masks are resized to it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root with MVTec AD's bottle")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's ResNet18")
    parser.add_argument("--anomalib", type=Path, metavar="PYTHON")
    parser.add_argument("--anomavision", type=Path, metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder of the models (default: a temporary one)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.data, options.weights = options.data.resolve(), options.weights.resolve()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # which the processes inherit
    machine = {"date": str(date.today()), "cpu": cpu_model(), "cores": THREADS, "python": platform.python_version()}
    machine |= {"padim": __version__, "load average before": f"{os.getloadavg()[0]:.1f}"}
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).resolve()
        found = compared(options, {"ours": sys.executable, **vars(options)})
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "contenders": found}, indent=1) + "\n")
    if options.picture:
        draw(found, options.picture)
    print(", ".join(f"{key} {value}" for key, value in machine.items()), markdown(found), sep="\n\n")


def compared(options: argparse.Namespace, pythons: dict[str, Any]) -> dict[str, Any]:
    """The figures of each contender, and its runs."""
    chosen = dict(CONTENDERS)
    for name, contender in CONTENDERS.items():
        if problem := missing(contender, pythons):
            print(f"left out: {name} ({problem})", file=sys.stderr)
            del chosen[name]
    for family in dict.fromkeys(contender.family for contender in chosen.values()):
        models = [Path(options.work, family, one.model) for one in chosen.values() if one.family == family]
        if not all(model.exists() for model in models):
            run(options, pythons[family], family, family, "--weights", str(options.weights))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(options.runs):
        for name, (family, model, _) in chosen.items():
            files = Path(options.work, family, model).parent.glob(f"{Path(model).stem}.*")  # weights may lie beside it
            size = {"model_bytes": sum(file.stat().st_size for file in files)}
            speed = run(options, pythons[family], family, name)
            runs[name].append(size | aurocs(options.data, Path(options.work, family, "maps.npz")) | speed)
    return {name: over(of) | {"runs": [over([one]) for one in of]} for name, of in runs.items()}


def missing(contender: Contender, pythons: dict[str, Any]) -> str | None:
    """What a contender needs and can't have here, if anything."""
    if not pythons[contender.family]:
        return f"no --{contender.family}"
    if "bf16" in contender.settings.values() and not multiplies_bfloat16():
        return "no products of bfloat16 on this processor"
    return "no OpenVINO" if contender.settings.get("engine") == "openvino" and not find_spec("openvino") else None


def run(options: argparse.Namespace, python: str | Path, family: str, *arguments: str) -> dict[str, Any]:
    """What a process in the folder of its family prints: the seconds until the first line, and the last as JSON."""
    folder = options.work / family
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)) if family == "ours" else ""}
    command = [str(Path(python).absolute()), str(SCRIPT), *arguments, "--data", str(options.data)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - start
        rest = process.stdout.read()
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return {"first_seconds": seconds, **json.loads(rest)} if arguments[0] in CONTENDERS else {}


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


def over(runs: list[Any]) -> Any:
    """The same figure of several runs as one: median, or percentiles where each run has a list."""
    if isinstance(runs[0], dict):
        return {key: over([run[key] for run in runs]) for key in runs[0]}
    if isinstance(runs[0], list):
        return {f"p{rank}": float(np.percentile([*chain(*runs)], rank)) for rank in (50, 99)}
    return statistics.median(runs) if isinstance(runs[0], int | float) else runs[0]


def markdown(found: dict[str, Any]) -> str:
    rows = [["contender", "image AUROC", "pixel AUROC", "model", "first verdict", "memory then", "memory, all files"]]
    for name, of in found.items():
        megabytes = [f"{of[key] / 1e6:.1f} MB" for key in ("model_bytes", "first_memory_bytes", "files_memory_bytes")]
        megabytes.insert(1, f"{of['first_seconds']:.2f} s")
        rows.append([name, f"{of['image_auroc']:.4f}", f"{of['pixel_auroc']:.4f}", *megabytes])
    tables = [rows]
    for source in ("files", "photos"):
        columns = [f"{count}, {what}" for count in BATCHES for what in ("median", "99 %", "images/s")]
        tables.append([[f"from {source} to verdicts, ms per batch of", *columns]])
        for name, of in found.items():
            batches = [of[source][str(count)] for count in BATCHES]
            figures = [
                (one["milliseconds"]["p50"], one["milliseconds"]["p99"], one["rate"]) if one else () for one in batches
            ]
            tables[-1].append([name, *chain(*([f"{x:.1f}" for x in three] or ["-"] * 3 for three in figures))])
    versions = {CONTENDERS[name].family: of["versions"] for name, of in found.items()}
    notes = [f"- {family}: {', '.join(map(' '.join, of.items()))}" for family, of in versions.items()]
    return "\n\n".join(["\n".join(notes), *map(table, tables)])


def table(rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def draw(found: dict[str, Any], path: Path) -> None:
    """Image AUROC against the milliseconds from one file to its verdict."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    families = [*dict.fromkeys(one.family for one in CONTENDERS.values())]
    for number, (name, of) in enumerate(found.items()):
        x, colour = of["files"]["1"]["milliseconds"]["p50"], f"C{families.index(CONTENDERS[name].family)}"
        axes.plot(x, of["image_auroc"], "os^vDP*X"[number % 8], color=colour, ms=8, label=f"{name}: {x:.0f} ms")
    figure.legend(loc="outside lower center", ncols=2)
    axes.set(xscale="log", xlabel="milliseconds from one file to its verdict (median)", ylabel="image AUROC, bottle")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
