"""The arrows of the house: imports point down only, and neither process imports the other's framework."""

import ast
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.versions

# From the top down. A part may import parts of the floors below it. Parts of one floor do not import each other, except
# the commands, and for the small modules at the bottom.
FLOORS = (
    (
        "annotate",
        "api",
        "train",
        "caption",
        "claims",
        "preferences",
        "evaluate",
        "card",
        "verifier",
        "export",
        "plan",
        "demo",
        "lmms_eval_plugin",
    ),
    ("pipeline",),
    ("config",),
    ("stages",),
    ("report",),
    ("evaluation", "feedback"),
    ("rewards",),
    ("inference", "training"),
    ("hf",),
    ("data", "models"),
    ("cli",),
    ("parallel",),
    ("records", "percent", "json_fields", "run_lock", "fingerprint", "errors", "disk", "memory", "__init__"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted((ROOT / "vigor_jax").rglob("*.py"))
# What the trainer may use of the bridge: nothing that needs PyTorch.
BRIDGE_PARTS = ("client", "messages", "local", "errors", "refusal", "images", "image_formats", "hub")
BRIDGE = sorted((ROOT / "detector_bridge").rglob("*.py"))


def imports(path: Path) -> list[str]:
    found = []
    tree = ast.parse(path.read_text())
    if path == ROOT / "vigor_jax" / "__init__.py":  # names of the public API, which only type checkers import there
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and is_for_types(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def part(name: str) -> str:
    """`vigor_jax.hf.load.Checkpoint` → `hf`."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in FLOOR else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    inside = path.relative_to(ROOT / "vigor_jax")
    own = inside.parts[0].removesuffix(".py")
    assert own in FLOOR, f"{own} stands on no floor; add it to FLOORS"
    for name in imports(path):
        assert name.split(".")[0] not in ("torch", "transformers")
        if name.split(".")[0] == "detector_bridge":
            assert name.split(".")[1] in BRIDGE_PARTS, f"{inside} imports {name}"
        if name.split(".")[0] == "vigor_jax":
            there, here = part(name), FLOOR[own]
            is_below = FLOOR[there] > here or there == own
            is_a_neighbor = FLOOR[there] == here in (0, len(FLOORS) - 1)
            assert is_below or is_a_neighbor, f"{inside} imports {name}, which is not below it"


def test_no_module_imports_itself_by_way_of_others():
    names = {module_name(path): path for path in (*MODULES, *BRIDGE)}
    arrows = {name: {module_of(found, names) for found in imports(path)} - {None, name} for name, path in names.items()}
    arrows["detector_bridge.client"].remove("detector_bridge.client_command")  # which only `python -m` imports there
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"cycle among {', '.join(sorted(arrows))}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def module_of(name: str, modules: Container[str]) -> str | None:
    """The module that `imports` names, or whose part it names."""
    return next((each for each in (name, name.rpartition(".")[0]) if each in modules), None)


@pytest.mark.parametrize("path", sorted((ROOT / "vigor_jax" / "models").glob("*.py")), ids=lambda path: path.stem)
def test_models_need_jax_and_flax_only(path):
    others = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert others <= {"flax", "jax", "jaxtyping", "numpy", "vigor_jax"}


@pytest.mark.parametrize("path", BRIDGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_bridge_knows_neither_jax_nor_the_trainer(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"jax", "flax", "vigor_jax"}


def test_training_imports_no_torch():
    entries = ("train", "caption", "evaluate", "export", "demo.compare", "demo.build")
    program = f"import sys, {', '.join(f'vigor_jax.{entry}' for entry in entries)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "jax" in loaded
    assert not loaded & {"torch", "transformers", "tensorflow"}
    assert not loaded & {"nltk", "scipy", "inflect"}, "a third of the time that a command needs to start"
