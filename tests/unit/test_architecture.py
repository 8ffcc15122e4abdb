"""docs/architecture.md names every file of the package and the order of its imports; links in it lead somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "padim"
PAGE = ROOT / "docs/architecture.md"


def block(heading):
    """The lines of the first block of text under a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    return re.search(r"^```\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)[1].splitlines()


def listed():
    """The paths of the tree, folders with a slash behind them, in the page's order."""
    paths, folders = [], []
    for line in block("Files"):
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        paths.append("".join(folders) if name.endswith("/") else "".join(folders) + name)
    return [path.removeprefix("padim/") for path in paths[1:]]


@cache
def sources():
    """The syntax trees of all modules, by their paths below the package; `__init__` files only if they have code."""
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    parsed = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    return {name: tree for name, tree in parsed.items() if not name.endswith("__init__.py") or has_code(tree)}


def has_code(tree):
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in tree.body)


def imports(nodes):
    """What some code imports, at module level and in functions; imports for type checking are passed over."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node.orelse)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(ast.iter_child_nodes(node))


@cache
def edges(name):
    """The modules of the package that one of them imports, other than the package itself."""
    found = set()
    for imported in imports(sources()[name].body):
        parts = imported.split(".")
        if parts[0] != "padim":
            continue
        known = ("/".join(parts[1:stop]) + ".py" for stop in (len(parts), len(parts) - 1))
        found.add(next((path for path in known if path in sources()), "__init__.py"))
    return found


@cache
def layers():
    """Every entry of the page's list of imports, with the number of its line."""
    return {entry: number for number, line in enumerate(block("Imports")) for entry in line.split(", ")}


def layer(name):
    """The line of the list that a module stands on, by the longest entry that fits."""
    fitting = [entry for entry in layers() if name == entry or (entry.endswith("/") and name.startswith(entry))]
    assert fitting, f"{name} is not in the list of imports"
    return layers()[max(fitting, key=len)]


def test_the_tree_has_every_file_once_and_nothing_else():
    paths = listed()
    assert len(paths) == len(set(paths))
    folders = {path.parent.relative_to(PACKAGE).as_posix() + "/" for path in PACKAGE.rglob("*.py")} - {"./"}
    assert sorted((folders | set(sources())) - set(paths)) == []
    assert [path for path in paths if path.endswith("/") != (PACKAGE / path).is_dir()] == []
    assert [path for path in paths if not (PACKAGE / path).exists()] == []


def test_imports_run_the_way_that_the_page_says():
    assert set(layers()) <= set(listed())
    pairs = [(name, other) for name in sources() for other in sorted(edges(name))]
    assert [f"{name} imports {other}" for name, other in pairs if layer(other) > layer(name)] == []


def test_imports_form_no_cycle():
    order = TopologicalSorter({name: edges(name) for name in sources()}).static_order()
    assert set(order) == set(sources())


def test_only_commands_import_argparse():
    found = [
        name for name in sources() if any(one.split(".")[0] == "argparse" for one in imports(sources()[name].body))
    ]
    assert found
    assert [name for name in found if not name.startswith("cli/")] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    path = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (path.parent / target).exists()] == []
