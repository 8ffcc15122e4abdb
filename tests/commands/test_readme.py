"""The README's example in Python; `test_guide.py` has its commands, links and options."""

from __future__ import annotations

import re
from pathlib import Path

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
    assert names["evaluation"].metrics.pixel_auroc is not None
    assert names["prediction"].verdict in ("normal", "anomalous")
    assert (tmp_path / "demo/lite0/object/model.safetensors").is_file()
