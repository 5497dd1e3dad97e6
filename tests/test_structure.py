"""The import rules of the project, read from the sources."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each layer may import itself and the layers before it. `data`, `init` and `models` stand side by
# side.
_PLAIN = {"errors", "output", "places"}
_CONFIG = {*_PLAIN, "config"}
_LEARNING = {*_CONFIG, "resolutions", "data", "models", "init"}
LAYERS = {
    "errors": set(),
    "output": set(),
    "places": {"errors"},
    "resolutions": {"errors"},
    "values": {"errors", "places"},
    "config": {"errors", "places", "resolutions", "values"},
    "presets": {"config"},
    "figures": {"errors"},
    "data": {*_CONFIG, "resolutions"},
    "models": _CONFIG,
    "init": {*_CONFIG, "models"},
    "training": {*_LEARNING, "figures"},
    "study": {*_LEARNING, "presets", "training"},
    "report": {*_LEARNING, "presets", "figures", "training", "study"},
    "arguments": _CONFIG,
    "cli": {*_LEARNING, "presets", "arguments", "training", "study", "report"},
    "__main__": {"cli", "output"},
}
# The rooms of training/, from the front down: each uses itself and those after it.
ROOMS = ("screen", "folder", "measure", "step", "ranks", "machine")
FRONT = {"__init__", "agenda", "loop", "outcome", "run", "saved", "stages", "together"}
SOURCES = sorted((ROOT / "lion_fast").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


def imported(path):
    """Every module that a file imports, at any depth; relative ones start with a dot."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names} if node.level else {module}
            if module == "lion_fast":
                names |= {f"lion_fast.{alias.name}" for alias in node.names}
    return names


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_inside_the_package_go_one_way(path):
    layer = path.relative_to(ROOT / "lion_fast").with_suffix("").parts[0]
    for module in imported(path):
        if not module.startswith("lion_fast.") or layer == "__init__":
            continue
        target = module.split(".")[1]
        assert target in LAYERS[layer] | {layer, "kernels"}, f"{name(path)} imports {module}"


def room(path):
    """Room of training/ that a source file lies in; None for the front and all else."""
    parts = path.relative_to(ROOT / "lion_fast").parts
    return parts[1] if parts[0] == "training" and len(parts) > 2 else None


@pytest.mark.parametrize("path", list(filter(room, SOURCES)), ids=name)
def test_a_room_of_training_uses_only_rooms_below_it(path):
    below = ROOMS[ROOMS.index(room(path)) :]
    for module in imported(path):
        if module.startswith("lion_fast.training"):
            target = module.split(".")[2]
            assert target in below, f"{name(path)} imports {module}"


def test_training_holds_its_front_and_its_rooms_alone():
    folder = ROOT / "lion_fast" / "training"
    assert {path.stem for path in folder.glob("*.py*")} == FRONT
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("folder", ROOMS)
def test_a_room_says_in_one_line_what_belongs_there(folder):
    source = (ROOT / "lion_fast" / "training" / folder / "__init__.py").read_text(encoding="utf-8")
    assert len((ast.get_docstring(ast.parse(source)) or "").splitlines()) == 1


def test_no_modules_of_data_import_each_other_in_a_circle():
    imports = {
        f"lion_fast.data.{path.stem}": imported(path)
        for path in SOURCES
        if path.parent.name == "data"
    }
    imports = {name: names & set(imports) for name, names in imports.items()}
    while leaves := {name for name, names in imports.items() if not names & set(imports)}:
        imports = {name: names for name, names in imports.items() if name not in leaves}
    assert not imports


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_import_torch_triton_cuda_and_each_other_only(path):
    for module in imported(path):
        top = module.split(".")[0]
        allowed = top in ("", "torch", "triton", "cuda") or top in sys.stdlib_module_names
        assert allowed, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=name)
def test_triton_and_dali_stay_in_their_places(path):
    for module in imported(path):
        if module.split(".")[0] in ("triton", "cuda"):
            assert path in KERNELS, f"{name(path)} imports {module}"
        if module.startswith("nvidia"):
            assert path.name.startswith("dali"), f"{name(path)} imports {module}"


def test_importing_the_package_loads_nothing_that_is_heavy_and_optional():
    code = (
        "import sys, lion_fast, lion_fast.training.run;"
        "heavy = {'nvidia.dali', 'matplotlib', 'ray', 'sklearn', 'rich', 'scipy'};"
        # Who compiles waits for Dynamo, 2 s; all others should not.
        "heavy |= {'torch._dynamo'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom lion_fast.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def module_name(path):
    """Dotted name of a source file; that of the package for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("lion_fast", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_on_import(path, modules):
    """Modules of the project that importing the file imports: not in functions, not for types."""
    found, package = set(), module_name(path)
    package = package if path.stem == "__init__" else package.rpartition(".")[0]
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found |= {
                f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names
            }
        elif isinstance(node, ast.If | ast.Try | ast.With):
            if "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node)):
                waiting += ast.iter_child_nodes(node)
    return found & modules


def test_no_module_imports_itself_in_a_circle():
    paths = {module_name(path): path for path in [*SOURCES, *KERNELS]}
    edges = {name: imported_on_import(path, set(paths)) for name, path in paths.items()}
    assert "lion_fast.config" in edges["lion_fast.training.run"]
    assert "lion_fast.kernels.dispatch" in edges["lion_fast.kernels.heads.op"]
    order = TopologicalSorter(edges)
    order.prepare()  # raises CycleError, which names the circle


def test_no_test_or_benchmark_file_changes_the_import_path():
    """The settings of pytest do that for all; scripts that run by themselves are other files."""
    files = [*(ROOT / "tests").glob("test_*.py"), *(ROOT / "bench").glob("bench_*.py")]
    changing = {
        name(path)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    }
    # Its worker is a script of its own, which loads the stand-in where it is started from.
    assert changing <= {"bench/bench_counts.py"}
