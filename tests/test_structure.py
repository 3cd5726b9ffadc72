"""The house: who may import whom, what stands at the top level, what the server leaves out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"models": set(), "training": {"models"}, "service": {"models"}}
STDLIB_AND_NUMPY = {*sys.stdlib_module_names, "numpy"}


def imports_of(file: Path) -> set[str]:
    """First parts of every module that `file` imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it goes"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}

    for file in (ROOT / package).rglob("*.py"):
        assert not imports_of(file) & forbidden, file


def test_the_contract_needs_nothing_but_numpy() -> None:
    for file in (ROOT / "models").rglob("*.py"):
        assert imports_of(file) <= STDLIB_AND_NUMPY | {"models"}, file


@pytest.mark.parametrize(
    "module", ["service.server", "service.worker", "service.offline", "service.__main__"]
)
def test_the_service_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_top_level_is_as_named() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("needs a git checkout: this is an unpacked archive")

    top = {line.partition("/")[0] for line in tracked.stdout.splitlines()}

    named = {"pyproject.toml", "README.md", "training", "service", "models", "tests", "deploy"}
    assert {name for name in top if not name.startswith(".")} <= named


def test_nothing_is_unpickled_unasked() -> None:
    for package in MAY_IMPORT:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.export.load":
                    assert file == ROOT / "training/importing/archive.py"  # comes after --trust
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "pickle.load",
                    "pickle.loads",
                    "torch.load",
                ):
                    weights_only = [one.value for one in node.keywords if one.arg == "weights_only"]
                    assert [ast.unparse(value) for value in weights_only] == ["True"], f"{file}:{node.lineno}"
