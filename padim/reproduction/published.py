"""The figures that were published for MVTec AD, see `published.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "screw",
    "toothbrush",
    "transistor",
    "zipper",
)
GROUPS = {"textures": TEXTURES, "objects": OBJECTS, "all": TEXTURES + OBJECTS}


@cache
def experiments() -> dict[str, dict[str, Any]]:
    """The published figures of every experiment, by its name: source, and metric -> category -> figure."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def source(experiment: str) -> str | None:
    """Where an experiment's figures were published; None if they weren't."""
    return experiments().get(experiment, {}).get("source")


def category_figure(experiment: str, metric: str, category: str) -> float | None:
    """The published figure of a category, in 0..1; metrics are `image`, `pixel` and `aupro`."""
    figure: float | None = experiments().get(experiment, {}).get(metric, {}).get(category)
    return figure


def group_figure(experiment: str, metric: str, group: str) -> float | None:
    """The published figure of a whole group, or the plain mean of those of its categories."""
    figures = experiments().get(experiment, {}).get(metric, {})
    if group in figures:
        return float(figures[group])
    return mean_figure(experiment, metric, GROUPS[group])


def mean_figure(experiment: str, metric: str, categories: tuple[str, ...]) -> float | None:
    """The plain mean of the published figures of some categories; None if one of them has none."""
    figures = [category_figure(experiment, metric, category) for category in categories]
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known and len(known) == len(figures) else None
