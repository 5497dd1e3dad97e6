"""The import rules of the project, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each layer may import itself and the layers before it. `data`, `init` and `models` stand side by
# side.
LAYERS = {
    "errors": set(),
    "config": {"errors"},
    "figures": {"errors"},
    "data": {"errors", "config"},
    "models": {"errors", "config"},
    "init": {"errors", "config", "models"},
    "training": {"errors", "config", "figures", "data", "models", "init"},
    "study": {"errors", "config", "data", "models", "init", "training"},
    "report": {"errors", "config", "figures", "data", "models", "init", "training", "study"},
    "cli": {"errors", "config", "data", "models", "init", "training", "study", "report"},
}
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


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_import_torch_triton_and_each_other_only(path):
    for module in imported(path):
        top = module.split(".")[0]
        allowed = top in ("", "torch", "triton") or top in sys.stdlib_module_names
        assert allowed, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=name)
def test_triton_and_dali_stay_in_their_places(path):
    for module in imported(path):
        if module.split(".")[0] == "triton":
            assert path in KERNELS, f"{name(path)} imports {module}"
        if module.startswith("nvidia"):
            assert path.name.startswith("dali"), f"{name(path)} imports {module}"


def test_importing_the_package_loads_nothing_that_is_heavy_and_optional():
    code = (
        "import sys, lion_fast, lion_fast.training;"
        "heavy = {'nvidia.dali', 'matplotlib', 'sklearn', 'rich', 'scipy'};"
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


def test_every_public_name_loads():
    import lion_fast

    for public in lion_fast.__all__:
        assert getattr(lion_fast, public) is not None
