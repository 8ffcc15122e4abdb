"""The benchmark: this project beside its alternatives, on the same images and weights.

    python scripts/measure/bench.py --data ROOT --weights FILE [--runs 3] [--anomalib PYTHON] [--output FILE.json]

Every contender of `contenders.py` and every stage of `stages.py` runs in a process of its own, in turn, and medians are
reported. `--anomalib` is the Python of an environment with anomalib in it. The script prints Markdown; `--output` keeps
every single run as JSON.
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
from pathlib import Path
from typing import Any

import torch

from padim.system.machine import cpu_model

SCRIPTS = Path(__file__).parent
COMMANDS = ("train", "eval", "predict", "synth", "data", "reproduce")
IMPORTS = "import resource, torch, torchvision; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="root with MVTec AD's bottle")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's ResNet18")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--anomalib", type=Path, metavar="PYTHON")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    inputs = ["--data", str(options.data.resolve()), "--weights", str(options.weights.resolve())]
    pythons = {"ours": Path(sys.executable), "dense": Path(sys.executable), "plain": Path(sys.executable)}
    if options.anomalib:
        pythons["anomalib"] = options.anomalib
    whole: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    stages: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.runs):
        for name, python in pythons.items():
            whole[name].append(_json(python, "contenders.py", name, *inputs))
        stages.setdefault("images", []).append(_json(Path(sys.executable), "stages.py", "images", *inputs))
        stages.setdefault("start", []).append(_start(inputs))
        for size in ("r18", "wr50"):
            for form in ("shared", "dense"):
                found = _json(Path(sys.executable), "stages.py", "gaussian", form, size)
                stages.setdefault(f"{size} {form}", []).append(found)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    machine = {"date": str(date.today()), "cores": os.cpu_count(), "cpu": cpu_model(), **versions}
    if options.output:
        result = {"machine": machine, "runs": whole, "stages": stages}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(_markdown(machine, _medians(whole), _medians(stages)))


def _json(python: Path, script: str, *arguments: str) -> dict[str, float]:
    """The last line that a script of this folder prints."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1])}
    command = [python, SCRIPTS / script, *arguments]
    with tempfile.TemporaryDirectory() as scratch:  # some contenders litter their working folder
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _start(inputs: list[str]) -> dict[str, float]:
    """The seconds until the commands answer, and the memory that the libraries take by themselves."""
    seconds = {f"padim-{name} --help": _seconds("-m", f"padim.cli.{name}", "--help") for name in COMMANDS}
    printed = subprocess.run([sys.executable, "-c", IMPORTS], check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory() as scratch:
        runs, image = Path(scratch, "runs"), Path(inputs[1], "bottle/test/good/000.png")
        _seconds("-m", "padim.cli.train", "--category", "bottle", *inputs, "--output", str(runs))
        predict = ["--model", str(runs / "bottle/model.safetensors"), str(image), "--out", scratch]
        seconds["padim-predict, one image, cold"] = _seconds("-m", "padim.cli.predict", *predict)
    return seconds | {"imports_bytes": float(printed)}


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {name: {key: statistics.median(run[key] for run in of) for key in of[0]} for name, of in runs.items()}


def _markdown(machine: dict[str, Any], whole: dict[str, Any], stages: dict[str, Any]) -> str:
    ours, imports = whole["ours"], stages["start"].pop("imports_bytes")
    seconds = ours["seconds"]
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| train and evaluate bottle | wall | CPU | peak memory | image AUROC | pixel AUROC | wall / ours |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {run['seconds']:.1f} s | {run['cpu_seconds']:.1f} s | {run['peak_memory_bytes'] / 1e6:.0f} MB"
        f" | {run['image_auroc']:.4f} | {run['pixel_auroc']:.4f} | {run['seconds'] / seconds:.2f} |"
        for name, run in whole.items()
    ]
    unavoidable = stages["images"].pop("unavoidable")
    limit = unavoidable / (os.cpu_count() or 1)
    lines += [
        f"| decode, resize and backbone alone | {limit:.1f} s | {unavoidable:.1f} s | | | | {limit / seconds:.2f} |"
    ]
    lines += [f"| `import torch, torchvision` alone | | | {imports / 1e6:.0f} MB | | | |", ""]
    rest = 1 - unavoidable / ours["cpu_seconds"]
    beyond = (ours["peak_memory_bytes"] - imports) / 1e6
    lines += [f"All that is neither decoding, resizing nor the backbone takes {rest:.0%} of the CPU time of `ours`;"]
    lines += [
        f"its memory is {beyond:.0f} MB beyond the imports, its wall time {seconds / limit:.2f} of the least.",
        "",
    ]
    lines += ["| stage, on one core | median |", "| --- | --- |"]
    lines += [f"| {name} | {value * 1e3:.2f} ms |" for name, value in stages["images"].items()]
    lines += ["", "| start, wall | median |", "| --- | --- |"]
    lines += [f"| {name} | {value:.2f} s |" for name, value in stages["start"].items()]
    lines += ["", "| Gaussians | shared | dense | dense / shared |", "| --- | --- | --- | --- |"]
    for size in ("r18", "wr50"):
        for key, shared in stages[f"{size} shared"].items():
            dense = stages[f"{size} dense"][key]
            scale, unit = (1e6, "MB") if key.endswith("bytes") else (1e-3, "ms")
            shown = f"{shared / scale:.1f} {unit} | {dense / scale:.1f} {unit} | {dense / shared:.1f}"
            lines.append(f"| {size}, {key.replace('_', ' ').removesuffix(' bytes')} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
