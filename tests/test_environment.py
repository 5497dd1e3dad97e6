import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from lion_fast.training.machine import environment


@pytest.mark.parametrize("told", [None, "0123abc"])
def test_outside_a_checkout_the_commit_is_what_the_environment_says(monkeypatch, told):
    monkeypatch.setattr(environment, "_first_line", lambda command: None)
    monkeypatch.delenv("LION_FAST_COMMIT", raising=False)
    if told is not None:
        monkeypatch.setenv("LION_FAST_COMMIT", told)
    assert environment.environment(torch.device("cpu"))["commit"] == told


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("committed", [False, True])
def test_the_commit_is_never_that_of_a_project_it_is_installed_in(tmp_path, monkeypatch, committed):
    """In a virtual environment inside a repository, kept out of it or committed with it."""
    monkeypatch.delenv("LION_FAST_COMMIT", raising=False)
    package = tmp_path / ".venv/lib/site-packages/lion_fast/training/machine"
    package.mkdir(parents=True)
    shutil.copy(environment.__file__, package)
    (tmp_path / "own.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-f", "." if committed else "own.py")
    git(tmp_path, "commit", "-qm", "mine")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert environment.commit() is None


def test_the_commit_of_its_own_checkout_is_told_whatever_git_is_told(tmp_path, monkeypatch):
    package = tmp_path / "lion_fast/training/machine"
    package.mkdir(parents=True)
    shutil.copy(environment.__file__, package)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "ours")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    monkeypatch.setenv("GIT_DIR", str(Path("/nowhere/.git")))
    assert environment.commit() == head
    (package / "environment.py").write_text("")
    assert environment.commit() == f"{head}-dirty"
