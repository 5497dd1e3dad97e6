"""On the import path of processes on the stand-in: kernels are noted there, and not compiled."""

import importlib.util
import os
import sys

NOTING = {
    "torch._inductor.async_compile": "note_instead_of_compiling",
    "lion_fast.kernels.launch": "note_instead_of_launching",
}
"""module -> the function of `stand_in_inductor` that changes it once it is loaded"""


class Noting:
    """Finds those modules, and changes each right after it is loaded."""

    def __init__(self):
        self.left = dict(NOTING)

    def find_spec(self, name, path=None, target=None):
        change = self.left.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            import stand_in_gpu
            import stand_in_inductor

            card = os.environ["STAND_IN_GPU"].partition("|")[0].removeprefix("stand-in ")
            getattr(stand_in_inductor, change)(stand_in_gpu.load(card))

        spec.loader.exec_module = execute_and_change
        return spec


if "STAND_IN_GPU" in os.environ:
    sys.meta_path.insert(0, Noting())
