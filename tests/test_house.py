"""The house keeps its rules: who may import whom, what a device never pulls in, what library code never does."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "meta": {"meta"},
    "privacy": {"privacy"},
    "client": {"client", "privacy", "meta"},
    "server": {"server", "client", "privacy", "meta"},
    "simulation": {"simulation", "server", "client", "privacy", "meta"},
}
WIRE = {"client.wire", "client.app", "client.compression", "client.bundle", "client.bundle_keys"}
"""What the server may read of the client's room: the wire format and the policy bundle, which both sides have."""
NEVER = {
    "meta": {"flwr", "opacus", "polars", "matplotlib", "ray", "typer", "rich"},
    "privacy": {"flwr", "polars", "matplotlib", "ray", "typer", "rich"},
    "client": {"polars", "matplotlib", "ray", "typer", "rich"},
    "server": {"polars", "matplotlib", "ray", "typer", "rich"},
    "simulation": {"typer"},
}
GLOBAL_NUMPY = {"seed", "rand", "randn", "randint", "random", "choice", "shuffle", "permutation", "normal", "uniform"}
GLOBAL_TORCH = {"manual_seed", "seed", "set_rng_state"}
DRAWS_TORCH = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def library() -> list[Path]:
    top = sorted(path for path in ROOT.glob("*.py"))
    return top + [path for room in (*ROOMS, "_cli") for path in sources(room)]


def imports(path: Path, code: str | None = None) -> Iterator[str]:
    """Dotted names that a file imports; those of fedrec without the package's own name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if code is None else code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("fedrec.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").removeprefix("fedrec.")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from ([f"{module}.{alias.name}".strip(".") for alias in node.names] if not node.module else [module])


def wrong_arrows(room: str, path: Path, code: str | None = None) -> list[str]:
    found = []
    for name in imports(path, code):
        head = name.split(".")[0]
        foreign_room = head in ROOMS and head not in ROOMS[room]
        past_the_wire = room == "server" and head == "client" and name not in WIRE
        if foreign_room or past_the_wire or head in NEVER[room] or head in ("cli", "_cli"):
            found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_point_down(room):
    assert sources(room)
    assert [wrong for path in sources(room) for wrong in wrong_arrows(room, path)] == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("meta", "from ..privacy.ledger import Ledger"),
        ("meta", "import flwr.app"),
        ("privacy", "from ..meta import policy"),
        ("client", "from ..simulation.world import World"),
        ("client", "import polars as pl"),
        ("server", "from ..client.adaptation import adapt_device"),
        ("server", "from .. import simulation"),
        ("simulation", "from ..cli import app"),
    ],
)
def test_an_arrow_that_points_up_is_found(room, code):
    assert len(wrong_arrows(room, ROOT / room / "made_up.py", code)) == 1


def test_a_device_does_not_pull_in_the_simulation():
    modules = ["config", *(f"client.{path.stem}" for path in sources("client") if path.stem != "__init__")]
    code = f"import sys, {', '.join(f'fedrec.{module}' for module in modules)}; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = set(done.stdout.split())
    assert "fedrec.client.app" in loaded
    assert loaded.isdisjoint({"fedrec.simulation", "polars", "matplotlib", "ray", "pandas", "onnxruntime"})


def test_every_room_is_in_the_wheel():
    packaged = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for room in (*ROOMS, "_cli") for path in sources(room)}
    assert packaged == {"fedrec"} | {"fedrec." + ".".join(folder.parts) for folder in folders}


def test_the_suite_runs_in_a_clone_of_any_name(tmp_path):
    """The root is a package; pytest must not import it by the name of its folder, which need not be an identifier."""
    clone = tmp_path / "fedrec-main"
    (clone / "tests").mkdir(parents=True)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    (clone / "tests" / "test_one.py").write_text("def test_one():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, cwd=clone, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_library_code_asserts_nothing():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in library()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def global_randomness(code: str) -> list[int]:
    """Lines that draw from, or seed, a generator that the whole process shares."""
    nodes = ast.walk(ast.parse(code))
    return [node.lineno for node in nodes if _imports_random(node) or (isinstance(node, ast.Call) and _draws(node))]


def _imports_random(node: ast.AST) -> TypeGuard[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import):
        return any(alias.name == "random" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.module == "random" and node.level == 0


def _draws(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    last = name.rsplit(".", maxsplit=1)[-1]
    own = any(keyword.arg == "generator" for keyword in call.keywords)
    if name.startswith(("np.random.", "numpy.random.")):
        return last in GLOBAL_NUMPY or (last == "default_rng" and not call.args)
    if name.startswith("torch.") and "(" not in name:
        return last in GLOBAL_TORCH or (last in DRAWS_TORCH and not own)
    in_place = last in ("normal_", "uniform_", "bernoulli_", "exponential_", "random_")
    return in_place and not own


def test_library_code_never_draws_from_a_global_generator():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in library()
        for line in global_randomness(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "np.random.seed(1)",
        "np.random.default_rng()",
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "x.normal_(0, 1)",
    ],
)
def test_a_global_generator_is_found(code):
    assert global_randomness(code) == [1]
    assert global_randomness("torch.randn(3, generator=own); np.random.default_rng(seed)") == []
