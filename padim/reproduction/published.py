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


def source(experiment: str | None) -> str | None:
    """Where the figures of an experiment were published; None if they weren't."""
    return experiments().get(experiment or "", {}).get("source")


def category_figure(experiment: str | None, metric: str, category: str) -> float | None:
    """The published figure of a category, in 0..1; metrics are `image`, `pixel` and `aupro`."""
    figure: float | None = experiments().get(experiment or "", {}).get(metric, {}).get(category)
    return figure


def group_figure(experiment: str | None, metric: str, group: str, categories: tuple[str, ...]) -> float | None:
    """The published figure of a whole group, if it has one of its own; else the plain mean of those of its categories.

    None if one of these categories of the group has no figure.
    """
    figures = experiments().get(experiment or "", {}).get(metric, {})
    if group in figures and categories == GROUPS[group]:
        return float(figures[group])
    known = [figures[category] for category in categories if category in figures]
    return sum(known) / len(known) if known and len(known) == len(categories) else None
