"""The commands of the guide run as they are written; its links, options and presets exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from padim.data.synth import write_category

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs/guide").glob("*.md"))
WITH_COMMANDS = [ROOT / "README.md", *GUIDE]
WITH_LINKS = [*WITH_COMMANDS, *sorted(ROOT.glob("docs/*.md"))]

# Lines that a test cannot run, and why. Commands of padim among them still have to parse.
NOT_RUN = {
    r"pip install .*": "needs the package index",
    r"source \.venv/bin/activate": "is for the shell of a user",
    r"bash scripts/\w+\.sh": "sets up an environment of its own",
    r"python (scripts|tests)/.*": "measures for minutes",
    r"python examples/camera.py .*": "takes a camera, and OpenCV; tests/examples has the tests of examples",
    r"(PADIM_MODEL=\S+ uvicorn|curl) .*": "serves until it is stopped, and asks that service",
    r"(apt-get install|cmake|build/padim-score) .*": "takes a compiler and ONNX Runtime's headers",
    r"dask .*": "starts a cluster",
    r"torchrun .*": "starts processes, as test_distributed.py does",
    r"padim-reproduce .* --backend .*": "needs a cluster",
    r"padim-reproduce --ablation all .*": "takes hours",
    r"padim-reproduce --preset cutpaste-.*": "makes hundreds of steps of training",
    r"padim-\w+ .*(mindspore-wr50|pytorch-wr50).*": "takes the weights of WideResNet50-2",
    r"padim-train .*--backbone (torchvision|timm):.*": "takes the weights of other networks",
    r"padim-\w+ .*--engine openvino.*": "takes a package that the tests do without",
    r"padim-train .*--preset cutpaste-.* --eval.*": "makes 500 steps of training",
    r"padim-train .*--size (512 768|1024 .*|2048 .*)": "takes large images",
}

# Lines that end with another exit code than 0, and why.
EXIT_CODES = {r"padim-data check .*": 1}  # the synthetic bottle has other counts than MVTec AD's


def blocks(path):
    """Language and text of each block of code, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def lines(code):
    """The lines of a bash block: command and comment."""
    found = (line.partition(" #") for line in code.replace("\\\n", " ").splitlines())
    return [(command.strip(), comment.strip()) for command, _, comment in found if command.strip()]


def first_match(table, command):
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, command)), None)


@pytest.fixture(scope="module")
def world(random_weights, tmp_path_factory):
    """A folder with all that the guide's commands read: small images, random weights where the hub keeps its own."""
    folder = tmp_path_factory.mktemp("world")
    for category, kind, train in (("bottle", "object", 20), ("grid", "texture", 8)):  # int8 takes 20
        root = folder / "data/mvtec" / category
        for _ in write_category(root, kind, 64, 64, train=train, good=2, defective=1, seed=3):
            pass
    bottle = folder / "data/mvtec/bottle"
    shutil.copytree(bottle / "train/good", folder / "photos/ok")
    shutil.copytree(bottle / "test/good", folder / "photos/ok_later")
    shutil.copytree(bottle / "test", folder / "photos/broken", ignore=shutil.ignore_patterns("good"))
    shutil.copytree(bottle / "ground_truth", folder / "photos/masks")
    for name in ("photos/new", "incoming"):
        shutil.copytree(bottle / "test/stain", folder / name)
    shutil.copy(bottle / "test/stain/000.png", folder / "part.png")
    (folder / "line3.toml").write_text('channels = 50\nlayers = ["layer3"]\n')

    weights = folder / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.save(random_weights, weights)
    (folder / weights.name).symlink_to(weights)

    from padim.cli.train import main

    arguments = ["--category", "bottle", "--data", folder / "data/mvtec", "--weights", weights]
    assert main([*map(str, arguments), "--output", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of that folder as the working directory, without a network."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns("torch"))
    monkeypatch.setenv("TORCH_HOME", str(world / "torch"))
    monkeypatch.delenv("PADIM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def ctrl_c_after_a_line():
    """Press Ctrl-C once a stream has recorded an image, or after a minute."""
    ended = threading.Event()

    def press():
        for _ in range(600):
            if ended.wait(0.1):
                return
            if any(record.stat().st_size for record in Path().rglob("watched.jsonl")):
                break
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_without_running(line, run):
    command, *arguments = shlex.split(line)
    if command == "torchrun":
        command, *arguments = arguments[arguments.index("-m") + 1 :]
        assert command == "padim"
        command, arguments = f"padim-{arguments[0]}", arguments[1:]
    if command == "padim-train":  # the configuration is resolved, too
        result = run("train", *arguments, "--print-config")
        assert result.code == 0, result.err
    elif command.startswith("padim-"):
        module = __import__(f"padim.cli.{command.removeprefix('padim-')}", fromlist=["parser"])
        module.parser().parse_args(arguments)
    elif command in ("python", "bash"):
        script = ROOT / arguments[0]
        assert script.is_file()
        assert {argument for argument in arguments if argument.startswith("--")} <= options_in(script)


def check_by_running(line, comment, run):
    command, *arguments = shlex.split(line)
    if command in ("cp", "rm"):
        subprocess.run([command, *arguments], check=True)
        return
    assert command.startswith("padim"), f"neither run nor listed in NOT_RUN: {line}"
    call = (command.removeprefix("padim-") if command != "padim" else "main", *arguments)
    if "--watch" in arguments:
        with ctrl_c_after_a_line():
            result = run(*call)
    else:
        result = run(*call)
    assert result.code == (first_match(EXIT_CODES, line) or 0), result.err
    assert result.out
    if comment.startswith("writes "):
        for written in re.findall(r"[\w.-]+(?:/[\w.-]+)+", comment):
            assert Path(written).is_file(), f"{line}: there is no {written}"


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, here, run):
    for language, code in blocks(page):
        if language == "python":
            if page in GUIDE:  # test_readme.py runs the other one
                exec(code, {})
            continue
        for line, comment in lines(code):
            if first_match(NOT_RUN, line):
                check_without_running(line, run)
            else:
                check_by_running(line, comment, run)


def test_every_line_that_is_not_run_is_on_a_page():
    code = "".join(code for page in WITH_COMMANDS for language, code in blocks(page) if language == "bash")
    there = [line for line, _ in lines(code)]
    assert [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in there)] == []


# Links, options and presets


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    folder = page.parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = folder / target if target else page
        assert file.exists(), f"{page.name}: there is no {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no section {anchor}"


def options_in(script):
    return set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", script.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def known_options():
    """Every option of every command and script."""
    known = set()
    for path in sorted((ROOT / "padim/cli").glob("*.py")):
        if "\ndef parser(" not in path.read_text(encoding="utf-8"):
            continue
        module = __import__(f"padim.cli.{path.stem}", fromlist=["parser"])
        parsers = [module.parser()]
        while parsers:
            for action in parsers.pop()._actions:
                known |= set(action.option_strings)
                if isinstance(action.choices, dict):
                    parsers += action.choices.values()
    for folder in ("scripts/**", "tests/fuzz", "tests/soak", "examples"):
        for script in ROOT.glob(f"{folder}/*.py"):
            known |= options_in(script)
    return known


def test_every_option_named_exists(known_options, run):
    known = known_options | set(re.findall(r"--[a-z][a-z-]*", run("train", "--method", "cutpaste", "--help").out))
    for page in WITH_LINKS:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        named = re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(re.findall(r"`([^`\n]+)`", prose)))
        assert set(named) - known <= {"--nproc-per-node", "--limit-concurrency"}, page.name


def test_every_preset_named_exists():
    for page in WITH_LINKS:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(?:--preset )?((?:pytorch|paddle|mindspore|anomalib|paper|cutpaste)-[\w-]+)`", text):
            assert (ROOT / f"configs/{name}.toml").is_file(), f"{page.name}: there is no preset {name}"
