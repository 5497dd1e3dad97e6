"""The public face: every name, from every side, in every order."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import user_script

import lion_fast
from lion_fast.cli import main

ROOT = Path(__file__).parent.parent
FACE = ROOT / "lion_fast" / "__init__.py"

# One process serves every order, since importing torch takes seconds. `forget` drops the package
# except its kernels, whose ops torch registers once per process.
ORDERS = """
import importlib, pkgutil, sys
from types import ModuleType

import lion_fast.kernels

def forget():
    for name in list(sys.modules):
        if name.split(".")[0] == "lion_fast" and not name.startswith("lion_fast.kernels"):
            del sys.modules[name]

def import_below(package):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), package + "."):
        if not found.name.endswith("__main__") and ".kernels" not in found.name:
            importlib.import_module(found.name)

def face():
    return importlib.import_module("lion_fast")

# Every name before and after the modules of its room.
for name, module in lion_fast._MODULE_OF.items():
    room = ".".join(module.split(".")[:2])
    forget()
    import_below(room)
    assert not isinstance(getattr(face(), name), ModuleType), name
    forget()
    first = getattr(face(), name)
    import_below(room)
    assert getattr(face(), name) is first, name

# All names, then all modules: every module is an attribute of its parent, hidden by no name.
forget()
found = {name: getattr(face(), name) for name in face().__all__}
import_below("lion_fast")
assert all(getattr(face(), name) is value for name, value in found.items())
for name, module in list(sys.modules.items()):
    parent, _, child = name.rpartition(".")
    if parent.split(".")[0] == "lion_fast":
        assert getattr(sys.modules[parent], child) is module, name

for code in CODES:
    forget()
    names = {}
    exec(code, names)
    assert callable(names["train"]), code
"""


def imports(path):
    """Names that a stub or the face imports, with the module that each comes from."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = "lion_fast" if node.level else node.module
            found |= {alias.asname: module for alias in node.names}
    return found


def test_the_stub_and_the_lazy_table_name_the_same_things():
    lazy = lion_fast._MODULE_OF | dict.fromkeys(lion_fast._MODULES, "lion_fast")
    assert imports(FACE.with_suffix(".pyi")) == lazy


def test_the_lazy_table_of_training_is_what_a_type_checker_reads():
    (block,) = (
        node
        for node in ast.parse((FACE.parent / "training/__init__.py").read_text("utf-8")).body
        if isinstance(node, ast.If)
    )
    read = {alias.name: node.module for node in block.body for alias in node.names}
    lazy = {name: f"lion_fast.training.{of}" for name, of in lion_fast.training._MODULE_OF.items()}
    assert read == lazy and sorted(lazy) == lion_fast.training.__all__


def test_every_folder_and_module_of_the_package_is_reachable_as_an_attribute():
    present = {path.stem for path in FACE.parent.iterdir() if path.suffix in ("", ".py")}
    present = {name for name in present if not name.startswith("__")}
    assert set(lion_fast._MODULES) == present | {"kernels"}


def test_every_public_name_and_module_loads_in_every_order():
    codes = [
        "from lion_fast.training.screen.console import make_console; from lion_fast import train",
        "from lion_fast import train; from lion_fast.training.screen.console import make_console",
        "import lion_fast.training.run; import lion_fast; train = lion_fast.train",
        "from lion_fast import Summary, evaluate, train; assert callable(evaluate)",
        "from lion_fast import *",
        "import lion_fast; train = lion_fast.training.train",
    ]
    code = f"CODES = {codes!r}\n{ORDERS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="trian"):
        lion_fast.trian  # noqa: B018


def setup_arguments():
    """Literal keyword arguments of `setup(...)`."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    literals = (ast.Constant, ast.List, ast.Dict)
    return {
        k.arg: ast.literal_eval(k.value) for k in call.keywords if isinstance(k.value, literals)
    }


def test_the_version_is_the_same_wherever_it_is_told(capsys):
    assert lion_fast.__version__ == setup_arguments()["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lion-fast {lion_fast.__version__}\n"


def test_an_installation_holds_every_folder_and_the_types():
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for room in ("lion_fast", "kernels")
        for path in (ROOT / room).rglob("__init__.py")
    }
    wanted = {re.sub("^kernels", "lion_fast.kernels", folder) for folder in folders}
    arguments = setup_arguments()
    assert set(arguments["packages"]) == wanted
    for name in arguments["package_data"]["lion_fast"]:
        assert (ROOT / "lion_fast" / name).exists()
    assert {"py.typed", "__init__.pyi"} <= set(arguments["package_data"]["lion_fast"])


def test_a_folder_called_kernels_registers_nothing_a_second_time():
    """transformers imports whatever is called so, and finds ours in a checkout."""
    code = (
        "import lion_fast.kernels, kernels, torch;"
        "print(hasattr(kernels, 'muon_update_'), kernels.__name__);"
        "print(torch.ops.lion_fast.muon_update_.default._schema.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["False kernels", "lion_fast::muon_update_"], done.stderr


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "lion_fast", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"lion-fast {lion_fast.__version__}\n"


def test_a_users_script_runs(tmp_path, stripes):
    assert user_script.train_a_little(str(stripes), tmp_path).steps == 2
    assert user_script.auxiliary_heads_start_at_zero()


def mypy(path):
    """mypy's complaints; other distributions count as untyped, so that it takes seconds."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-site-packages"]
    command += ["--follow-imports=silent", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


def test_a_type_checker_sees_every_name_of_a_users_script(tmp_path):
    pytest.importorskip("mypy")
    assert mypy(user_script.__file__).startswith("Success")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import lion_fast\n"
        "lion_fast.trian\n"
        "lion_fast.train(lion_fast.TrainConfig(lr='0.1'))\n"
        "x: int = lion_fast.train(lion_fast.TrainConfig()).run\n"
    )
    complaints = mypy(wrong)
    for line in (2, 3, 4):
        assert f"wrong.py:{line}: error" in complaints
