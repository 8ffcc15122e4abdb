"""Commands in processes of their own, forked from one that has loaded torch: a start takes no seconds then."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
import tempfile
import weakref
from functools import partial
from multiprocessing import get_context
from pathlib import Path

SMALL = ["--category", "texture", "--resize", 64, 64, "--crop", "--channels", 20, "--batch-size", 4]
LIMIT = 120.0  # seconds; only for a test that would hang otherwise

_FORKSERVER = get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    ["padim.cli.train", "padim.cli.predict", "padim.cli.reproduce", "padim.reproduction.runs"]
)


class Command:
    """A command that runs."""

    def __init__(self, name, *arguments, prepare=None):
        """Start it; before that, its process calls what prepares it."""
        self.folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self.folder)
        self.process = _FORKSERVER.Process(target=_run, args=(self.folder, name, [*map(str, arguments)], prepare))
        self.process.start()

    def finish(self):
        """Its exit code, what it printed, and what it complained of."""
        self.process.join(LIMIT)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode, *((self.folder / name).read_text() for name in ("out", "err"))

    def kill(self, after):
        """SIGKILL after so many seconds, unless it is done by then."""
        self.process.join(after)
        self.process.kill()
        self.process.join()


def _run(folder, name, arguments, prepare):
    if prepare:
        prepare()
    for file, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(folder / file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.exit(importlib.import_module(f"padim.cli.{name}").main(arguments))


def train(output, data_root, weights_file, *options):
    """padim-train of a small model of the category texture."""
    return Command("train", *SMALL, "--data", data_root, "--weights", weights_file, "--output", output, *options)


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def ranks(count, *arguments):
    """padim-train in as many processes as torchrun would start: exit code, and what all printed and complained of."""
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    common["TORCHELASTIC_RUN_ID"] = "test"
    started = [
        Command("train", *arguments, prepare=partial(_join, common | {"RANK": str(rank)})) for rank in range(count)
    ]
    codes, outputs, complaints = zip(*(command.finish() for command in started))
    return max(map(abs, codes)), "".join(outputs), "".join(complaints)


def _join(environment):
    os.environ.update(environment)
