"""The rooms: which may import which, what each of them may hold, and what is at the top of the tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.service import ROOT

# Each imports only itself and what is named before it.
LAYERS = (
    "files",
    "telemetry",
    "db",
    "api",
    "limits",
    "auth",
    "ingest",
    "resources",
    "application",
    "jobs",
    "dev",
    "commands",
    "server",
)
TOP = {
    "LICENSE",
    "Makefile",
    "README.md",
    "app",
    "config",
    "docs",
    "migrations",
    "requirements.txt",
    "sql",
    "tests",
    "wsgi.py",
}
MAX_MODULE_LINES = 250
MAX_VIEW_LINES = 8


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """The modules of app/ by name, such as `db.database`; a package by its own name. `__main__` is left out."""
    found = {}
    for path in sorted((ROOT / "app").rglob("*.py")):
        parts = path.relative_to(ROOT / "app").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and name != "__main__":
            found[name] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Everything that a file imports, at the top or in a function, by its whole name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    """The modules of app/ that each module of app/ needs, packages that are run on the way included."""
    known = modules()
    needs: dict[str, set[str]] = {}
    for module, path in known.items():
        room = module.split(".")[0]
        needs[module] = set()
        for whole in imported(path):
            if not whole.startswith("app."):
                continue
            name = whole.removeprefix("app.")
            # The last part may be a function or a class.
            target = name if name in known else name.rpartition(".")[0]
            needs[module] |= {target} | ({target.split(".")[0]} - {room})
        needs[module] = {target for target in needs[module] if target in known}
    return needs


def reachable(start: str, needs: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [*needs[start]]
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += needs[module]
    return found


def upward_imports() -> Iterator[str]:
    for module, targets in arrows().items():
        for target in sorted(targets):
            if LAYERS.index(target.split(".")[0]) > LAYERS.index(module.split(".")[0]):
                yield f"app.{module} imports app.{target}, which is above it"


def import_cycles() -> Iterator[str]:
    needs = arrows()
    for module in needs:
        if module in reachable(module, needs):
            yield f"app.{module} is part of an import cycle"


def foreign_psycopg() -> Iterator[str]:
    for module, path in modules().items():
        is_at_home = module.split(".")[0] in ("db", "dev")
        if not is_at_home and any(name.split(".")[0] in ("psycopg", "psycopg_pool") for name in imported(path)):
            yield f"app.{module} imports psycopg"


def long_modules() -> Iterator[str]:
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "config").rglob("*.py")]):
        if path.read_text(encoding="utf-8").count("\n") > MAX_MODULE_LINES:
            yield f"{path.relative_to(ROOT)} is too long"


def long_views() -> Iterator[str]:
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_view = any(
                isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "route"
                for call in node.decorator_list
            )
            if is_view and node.end_lineno and node.end_lineno - node.lineno + 1 > MAX_VIEW_LINES:
                yield f"the view {path.relative_to(ROOT)}:{node.name} is too long"


def foreign_tests() -> Iterator[str]:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "tests" and any(part.startswith("test_") or part == "conftest" for part in parts[1:-1]):
                yield f"{path.relative_to(ROOT)} imports {name}"


def code_in_config() -> Iterator[str]:
    for path in sorted((ROOT / "config").rglob("*.py")):
        name = str(path.relative_to(ROOT / "config"))
        if name not in ("__init__.py", "settings.py", "sources.py", "checks.py", "gunicorn.py"):
            yield f"config/{name} is code"


def strangers_at_the_top() -> Iterator[str]:
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith((".", "__"))}
    yield from (f"{name} is at the top of the tree" for name in sorted(there - TOP))
    yield from (f"{name} is missing at the top of the tree" for name in sorted(TOP - there))


RULES = (
    upward_imports,
    import_cycles,
    foreign_psycopg,
    long_modules,
    long_views,
    foreign_tests,
    code_in_config,
    strangers_at_the_top,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_architecture_has_no_violation(rule: Callable[[], Iterator[str]]) -> None:
    assert list(rule()) == []


def test_every_room_has_its_layer() -> None:
    assert {module.split(".")[0] for module in modules()} <= set(LAYERS)


def test_the_page_on_the_architecture_names_the_layers_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "```\n" + "\n".join(reversed(LAYERS)) + "\n```" in page


def test_an_import_cycle_is_found() -> None:
    needs = {"db": {"api"}, "api": {"limits"}, "limits": {"db"}, "auth": {"db"}}
    assert [module for module in needs if module in reachable(module, needs)] == ["db", "api", "limits"]
