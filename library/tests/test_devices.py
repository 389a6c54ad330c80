"""How many processes there are by default, and what each has of the GPUs and the cores."""

import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from aggregating_worker.process import devices, inside
from aggregating_worker.process.devices import gpus, shares


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*devices.THREADS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0,1", ["0", "1"]), ("GPU-ab12, MIG-7", ["GPU-ab12", "MIG-7"]), ("2", ["2"]), ("", []), (" , ", [])],
)
def test_gpus_are_the_entries_of_the_variable_as_they_stand(
    monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


def test_without_the_variable_gpus_are_the_devices_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Path("/dev/nvidia10"), Path("/dev/nvidia2"), Path("/dev/nvidia0"), Path("/dev/nvidia0x")]
    monkeypatch.setattr(Path, "glob", lambda _, pattern: found if pattern == "nvidia[0-9]*" else [])
    assert gpus() == ["0", "2", "10"]


@pytest.mark.parametrize(
    ("visible", "processes", "mine"),
    [
        ("a,b", 2, ["a", "b"]),
        ("a,b,c,d", 2, ["a,c", "b,d"]),
        ("a,b", 3, ["a", "b", "a"]),
        ("a,b", 1, ["a,b"]),
        ("a", 2, [None, None]),
    ],
)
def test_gpus_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, visible: str, processes: int, mine: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares(processes)] == mine


def test_cores_are_shared_out_where_nobody_has_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)})
    [share, _] = shares(2)
    assert "OMP_NUM_THREADS" not in share
    assert share["MKL_NUM_THREADS"] == "8"
    assert shares(1) == [{}]
    assert {share["MKL_NUM_THREADS"] for share in shares(20)} == {"1"}


@pytest.mark.parametrize("in_use", [True, False])
def test_cuda_is_in_use_once_pytorch_says_so(monkeypatch: pytest.MonkeyPatch, in_use: bool) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert devices.uses_gpu() is False
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: in_use))
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, torch))
    assert devices.uses_gpu() is in_use
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(inside, "_threads", lambda: 1)
    assert inside.can_fork() is not in_use
