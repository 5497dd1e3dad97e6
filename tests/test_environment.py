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
