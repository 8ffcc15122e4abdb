"""The options that make up a protocol: method, preset or file, and one for each field of the configuration."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padim.cli.options import AUTO, positive
from padim.config import ALIGNMENTS, BaseConfig, Config, kinds, preset_path, presets
from padim.detectors.registry import CONFIGURATIONS, read_config
from padim.errors import PadimError


def method_of(arguments: Sequence[str] | None) -> str:
    """The method that a command line asks for, by itself or by its preset or file; PaDiM where it doesn't say."""
    early = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_source_options(early)
    try:
        options, _ = early.parse_known_args(arguments)
        if options.method:
            return str(options.method)
        path = _path(options)
        return read_config(path).method if path else Config.method
    except (argparse.ArgumentError, PadimError):  # which the whole parser, or reading the file again, will report
        return Config.method


def add_source_options(parser: argparse._ActionsContainer) -> None:
    """`--method`, `--config` and `--preset`."""
    parser.add_argument(
        "--method",
        choices=tuple(CONFIGURATIONS),
        help="detector to train (default: that of the configuration, or padim)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="configuration, a TOML file")
    source.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(presets())} (default: pytorch-r18)")


def add_size_option(parser: argparse._ActionsContainer) -> None:
    """`--size N`."""
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="N",
        help="side, or height and width: resize the whole image to it, without a crop",
    )


def add_align_option(parser: argparse._ActionsContainer) -> None:
    """`--align`, whose `auto` is resolved for each category."""
    parser.add_argument(
        "--align",
        choices=(*ALIGNMENTS, AUTO),
        help="move parts that lie shifted, or shifted and turned, into one frame; auto: as the training images suggest"
        " (default: none, or that of the configuration)",
    )


def add_field_options(parser: argparse.ArgumentParser, method: str) -> None:
    """An option for every field of a method's configuration."""
    group = parser.add_argument_group(f"the protocol of {method}, field by field, over that of --preset or --config")
    config = CONFIGURATIONS[method]
    for field in dataclasses.fields(config):
        if field.name == "align":  # which stands with the options of every day
            continue
        kind, several = kinds(config)[field.name]
        default: Any = field.default
        shown = (" ".join(map(str, default)) or "nothing") if several else str(default)
        choices: tuple[str, ...] = field.metadata["choices"]
        if field.name == "precision":
            choices += (AUTO,)
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            nargs="*" if several else None,
            choices=choices or None,
            metavar=None if choices else "N" if kind is int else kind.__name__.upper(),
            help=f"{field.metadata['help']} (default: {shown})",
        )


def given_fields(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The fields of a method's configuration that the options have values for.

    Raises:
        PadimError: two options set the same field.
    """
    fields = [field.name for field in dataclasses.fields(CONFIGURATIONS[method])]
    given = {name: getattr(options, name) for name in fields if getattr(options, name) not in (None, AUTO)}
    if not options.size:
        return given
    if len(options.size) > 2 or "resize" in given or "crop" in given:
        raise PadimError("--size: give a side, or height and width, and neither --resize nor --crop")
    return given | {"resize": (options.size[0], options.size[-1]), "crop": ()}


def asks_for_size(options: argparse.Namespace) -> bool:
    """Whether the options say how large images are, by themselves or by a preset or file."""
    return any((options.preset, options.config, options.size, options.resize, options.crop is not None))


def config_from(options: argparse.Namespace) -> BaseConfig:
    """The configuration that the options ask for: command line over file over default.

    Raises:
        PadimError: a value is not valid, or for another method.
    """
    path = _path(options)
    config = read_config(path) if path else CONFIGURATIONS[options.method or Config.method]()
    if options.method not in (None, config.method):
        raise PadimError(f"--method {options.method}: {path} is a configuration of {config.method}")
    return dataclasses.replace(config, **given_fields(options, config.method))


def _path(options: argparse.Namespace) -> Path | None:
    """The file of the preset or configuration that is named."""
    path: Path | None = preset_path(options.preset) if options.preset else options.config
    return path
