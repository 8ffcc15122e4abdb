"""The README's examples and options exist and work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from padim.config import preset_path
from padim.data.synth import write_category

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs(tmp_path, monkeypatch):
    for _ in write_category(tmp_path / "demo/data/object", "object", 64, 64, train=3, good=2, defective=2, seed=0):
        pass
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names = {}
    exec(example, names)
    assert names["scores"].shape == (8,)
    assert names["maps"].shape == (8, 224, 224)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if "padim-" in line])
def test_commands_parse(line):
    command, *arguments = line.split("#")[0].split()
    module = __import__(f"padim.cli.{command.removeprefix('padim-')}", fromlist=["parser"])
    module.parser().parse_args(arguments)


def test_every_option_named_is_one_of_some_command():
    known = {"--images", "--inputs", "--minutes", "--only"}  # of scripts
    for name in ("train", "eval", "predict", "synth", "data", "reproduce", "export"):
        parser = __import__(f"padim.cli.{name}", fromlist=["parser"]).parser()
        known |= {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", README)) - known <= {"-e", "-m", "--nproc-per-node"}


def test_presets_named_are_there():
    for name in re.findall(r"`((?:pytorch|paddle|mindspore|anomalib|paper|cutpaste)-[\w-]+)`", README):
        assert preset_path(name).is_file()
