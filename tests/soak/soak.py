"""Hours of use in minutes: random commands with injected faults. Nothing may break, and nothing may grow.

    python tests/soak/soak.py --minutes 30 [--seed 0] [--weights FILE] [--json]

The script makes a synthetic category and, by default, random weights. Train, also with `--align` and `--trim`, eval,
predict, also of exports, in int8 and with OpenVINO where that is installed, `--update` and reproduce run in this one
process, which would show what they don't release. In between, the same commands, export and `--watch`
run as processes that are killed, or that find an image damaged or deleted or the disk full. The script checks every
outcome: exit codes, that a model is whole or absent, and that a rerun completes. After each step it notes the memory
(without pages of files and without what the allocator has free), file handles, threads and temporary files. They are
flat if the median of the last quarter of the notes is not above that of the second quarter, memory within 5 %. The
exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import io
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torchvision
from tqdm import tqdm

from padim.cli.tables import aligned
from padim.data.synth import write_category

PROTOCOL = "--resize 64 --crop 64 --channels 20 --batch-size 4"
IMAGES = 20  # to train on, as many as int8 takes
LEFT = "ort.quant."  # what ONNX Runtime leaves where it is killed while it quantises
MEASURES = {"megabytes": 1.05, "handles": 1.0, "threads": 1.0, "temporary": 1.0}  # how much more is still flat
PATIENCE = 300.0  # seconds, after which a process is taken to hang
ENGINES = ("openvino",) if importlib.util.find_spec("openvino") else ()
IN_PROCESS = ("train", "update", "align", "trim", "eval", "predict", "posed", "score", "int8", *ENGINES, "reproduce")
EXPORTS = ("export", "export int8")  # not in this process: torch.export keeps what it has traced


@dataclass
class Soak:
    """The folder that everything happens in, and how much has happened so far."""

    folder: Path
    weights: Path
    random: random.Random
    runs: int = 0
    faults: int = 0

    def __post_init__(self) -> None:
        self.data, self.model = self.folder / "data", self.folder / "runs/part/model.safetensors"
        for _ in write_category(self.data / "part", "object", 64, 64, train=IMAGES, good=4, defective=2, seed=0):
            pass
        self.here("train")
        self.whole = self.model.read_bytes()
        for kind in EXPORTS:
            done(self.start(kind))
        for kind in IN_PROCESS:  # a first call loads libraries
            self.here(kind)

    def arguments(self, kind: str, *more: object) -> list[str]:
        """The name of a command and its arguments."""
        data, new = f"--category part --data {self.data}", f"--weights {self.weights}"
        fit, test = f"train {data} {PROTOCOL} {new}", f"{self.data}/part/test"
        exported, int8 = self.model.with_suffix(".onnx"), self.folder / "int8.onnx"
        known = {
            "train": f"{fit} --output {self.folder}/runs --keep-moments",
            "align": f"{fit} --output {self.folder}/aligned --align rotate",
            "trim": f"{fit} --output {self.folder}/trimmed --trim 0.25",
            "update": f"train {data} --output {self.folder}/updated --update {self.model}",
            "eval": f"eval {data} --output {self.folder}/runs --report",
            "predict": f"predict --model {self.model} {test} --out {self.folder}/out --panel",
            "posed": f"predict --model {self.folder}/aligned/part/model.safetensors {test}",
            "export": f"export --model {self.model}",
            "export int8": f"export --model {self.model} --storage int8 --images {self.data}/part/train --out {int8}",
            "score": f"predict --model {exported} {test}",
            "int8": f"predict --model {int8} {test}",
            "openvino": f"predict --model {exported} {test} --engine openvino",
            "reproduce": f"reproduce {data} --output {self.folder}/results {new} --ablation layer3 sum --jobs 1",
            "watch": f"predict --model {self.model} --watch {self.folder}/in --settle 0.2",
        }
        self.runs += 1
        return [*shlex.split(known[kind]), *map(str, more)]

    def here(self, kind: str, *more: object, code: int = 0) -> str:
        """Run a command in this process; gives what it complained of."""
        name, *arguments = self.arguments(kind, *more)
        err = io.StringIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            found = importlib.import_module(f"padim.cli.{name}").main(arguments)
        assert found == code, f"{kind} in this process ended with {found}: {err.getvalue()}"
        return err.getvalue()

    def start(self, kind: str, *more: object) -> subprocess.Popen[str]:
        """Start a command as a process."""
        name, *arguments = self.arguments(kind, *more)
        command = [sys.executable, "-m", f"padim.cli.{name}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def forget_results(self) -> None:
        """Remove the results, so that padim-reproduce has something to do."""
        shutil.rmtree(self.folder / "results", ignore_errors=True)

    def note(self, minute: float) -> dict[str, float]:
        """The memory, handles and threads of this process, and the temporary files of its folder."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free but not given back depends on chance
        process, others = psutil.Process(), (self.folder / "tmp").glob("[!.]*")
        temporary = [*self.folder.rglob(".padim-*"), *(file for file in others if not file.name.startswith(LEFT))]
        counts = {"minute": minute, "runs": self.runs, "faults": self.faults, "temporary": len(temporary)}
        memory = process.memory_info()
        anonymous = (memory.rss - memory.shared) / 1e6
        return counts | {"megabytes": anonymous, "handles": process.num_fds(), "threads": process.num_threads()}


def done(process: subprocess.Popen[str]) -> str:
    """What a process prints; it has to end with exit code 0."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, f"{process.args!r} ended with {process.returncode}: {err}"
    return out


def plain(soak: Soak) -> None:
    """A command in this process, or an export."""
    soak.forget_results()
    kind = soak.random.choice([*IN_PROCESS, *EXPORTS])
    if kind in EXPORTS:
        done(soak.start(kind))
    else:
        soak.here(kind)


def killed(soak: Soak) -> None:
    """A command that is killed, or loses one of its workers, and then runs again."""
    kind = soak.random.choice(["train", "train", "align", "trim", "eval", "predict", *EXPORTS, "reproduce"])
    soak.forget_results()
    absent = kind == "train" and soak.random.random() < 0.5
    if absent:
        soak.model.unlink()
    process = soak.start(kind, *(["--jobs", 2] if kind == "reproduce" else []))
    time.sleep(soak.random.uniform(1, 10))
    if process.poll() is None:
        children = psutil.Process(process.pid).children()
        victim = soak.random.choice([*filter(is_worker, children), process])
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        if victim is not process:
            done(process)
        _, left = psutil.wait_procs(children, PATIENCE)  # they notice that their parent is gone
        assert not left, f"{left} outlived a killed {kind}"
    process.communicate()
    unharmed = soak.model.read_bytes() == soak.whole if soak.model.exists() else absent
    assert unharmed, f"the model is broken after a killed {kind}"
    for path in [*soak.folder.rglob("eval.json"), *soak.folder.glob("results/*/*.json")]:
        json.loads(path.read_text())
    for left in soak.folder.rglob(".padim-*"):  # as if an hour had passed
        os.utime(left, (0, 0))
    done(soak.start(kind))
    assert soak.model.read_bytes() == soak.whole, f"another model after a killed {kind}"


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is one of those in which padim-reproduce executes its runs."""
    try:
        return "LokyProcess" in " ".join(process.cmdline())
    except psutil.Error:  # it is gone
        return False


def damaged(soak: Soak) -> None:
    """One image that is cut short, noise or empty, and another that is deleted while a process learns from it."""
    copy = Path(shutil.copytree(soak.data / "part", soak.folder / "copy/part"))
    first, second = soak.random.sample(sorted((copy / "train/good").iterdir()), 2)
    first.write_bytes(soak.random.choice([first.read_bytes()[:1000], soak.random.randbytes(1000), b""]))
    where = ("--data", copy.parent, "--output", soak.folder / "damaged")
    assert first.name in soak.here("train", *where)
    process = soak.start("train", *where, "--json")
    time.sleep(soak.random.uniform(0, 5))
    second.unlink()
    summary = json.loads(done(process))
    read, skipped = summary["images"], summary["skipped"]  # or one is gone before the listing
    assert (IMAGES - read, skipped) in [(1, 1), (2, 2), (2, 1)], summary
    shutil.rmtree(copy.parent)


def full(soak: Soak) -> None:
    """A disk that is too small for a model, where one can be mounted."""
    disk = soak.folder / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        print("can't mount a small disk here: nothing was filled", file=sys.stderr)
        return
    try:
        assert "No space left on device" in soak.here("train", "--output", disk, code=2)
        assert not list((disk / "part").iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def watched(soak: Soak) -> None:
    """A stream of images, one of them broken, that a SIGTERM ends."""
    folder = Path(shutil.copytree(soak.data / "part/test/good", soak.folder / "in"))
    (folder / "broken.png").write_bytes(b"broken")
    process = soak.start("watch")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in folder.glob("*.png")]
    assert sum("error" in line for line in lines) == 1
    process.terminate()
    assert done(process) == ""
    shutil.rmtree(folder)


# The steps, and how often each is taken in relation to the others.
STEPS: dict[Callable[[Soak], None], int] = {plain: 6, killed: 2, damaged: 1, full: 1, watched: 1}


def growth(notes: list[dict[str, float]]) -> dict[str, tuple[float, float, bool]]:
    """The medians of each measure in the second and in the last quarter, and whether it is flat."""
    quarter, found = len(notes) // 4, {}
    for name, allowed in MEASURES.items():
        values = [note[name] for note in notes]
        before, after = map(statistics.median_high, (values[quarter : 2 * quarter], values[-quarter:]))
        found[name] = (before, after, after <= before * allowed)
    return found


def table(notes: list[dict[str, float]]) -> str:
    """About twenty of the notes."""
    rows = [[f"{value:.{int(name == 'minute')}f}" for name, value in note.items()] for note in notes]
    return aligned([[*notes[0]], *rows[:: max(1, len(rows) // 20)]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of a ResNet18 (default: random ones)")
    parser.add_argument("--json", action="store_true", help="print all notes as JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")  # so that what stays there can be counted
        if not options.weights:
            torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pth")
        soak = Soak(folder, options.weights or folder / "weights.pth", random.Random(options.seed))
        notes, start, length = [soak.note(0)], time.monotonic(), 60 * options.minutes
        with tqdm(total=length, bar_format="{desc:10}{percentage:3.0f} %|{bar}|") as bar:
            while bar.n < length or len(notes) < 8:
                (step,) = soak.random.choices([*STEPS], [*STEPS.values()])
                bar.set_description(step.__name__)
                step(soak)
                soak.faults += step is not plain
                passed = time.monotonic() - start
                notes.append(soak.note(passed / 60))
                bar.update(min(passed, length) - bar.n)
    found = growth(notes)
    flat = all(holds for *_, holds in found.values())
    if options.json:
        print(json.dumps({"flat": flat, "medians": found, "notes": notes}))
    else:
        print(table(notes))
        for name, (before, after, holds) in found.items():
            print(f"{name}: {before:.0f} -> {after:.0f}, {'flat' if holds else 'GROWS'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
