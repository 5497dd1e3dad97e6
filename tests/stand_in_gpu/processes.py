"""Many short runs on the stand-in, each in a process of its own, for one import of torch."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def leave() -> NoReturn:
    """End this process, which used the GPU, without the interpreter's teardown.

    PyTorch's autograd thread of a device may still be dropping the last graph. Python 3.11 ends a
    thread that asks for its lock during teardown, and C++ answers that with abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def in_own_process(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call `function` in a fork of this process, which must not have used the GPU yet.

    Returns {"result": what it returned} (JSON-ready), {"error": "Type: message"} where it raised,
    or {"signal": N} where it died. What it prints goes to standard error.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            json.dump(_outcome(function, args), pipe)
        sys.stderr.flush()
        # Without the exit handlers of the process that it is a copy of.
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"signal": os.WTERMSIG(status)} if not text else json.loads(text)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return {"result": function(*args)}
    except BaseException as error:  # whatever it was, the caller is to read it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
