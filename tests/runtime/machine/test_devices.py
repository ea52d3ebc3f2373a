"""The device is the one that was asked for, or an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dasheng_edge.runtime.errors import DeviceError
from dasheng_edge.runtime.machine import devices
from dasheng_edge.runtime.machine.devices import Placement, checked_device, checked_threads, usable_cores


def test_unknown_devices_and_thread_counts() -> None:
    assert checked_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="expected one of cpu, cuda"):
        checked_device("tpu")
    assert checked_threads(1) == 1
    assert checked_threads(None) == usable_cores()
    for threads in (0, (os.cpu_count() or 1) + 1, 100_000):
        with pytest.raises(
            DeviceError, match=rf"cannot run on {threads} threads; expected 1 to {os.cpu_count() or 1},"
        ):
            checked_threads(threads)


def fake_cpus(folder: Path, siblings: dict[int, str]) -> None:
    for cpu, text in siblings.items():
        (folder / f"cpu{cpu}/topology").mkdir(parents=True)
        (folder / f"cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_core_with_two_threads_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_cpus(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert usable_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 8, 9})  # of which nothing is known
    assert usable_cores() == 3


def test_a_container_quota_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for text, cores in (("150000 100000", 2), ("max 100000", 8), ("1000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert usable_cores() == cores


def test_hardware_threads_count_where_cores_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_cpus(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert (usable_cores(), devices.usable_hardware_threads()) == (2, 4)
    (tmp_path / "cpu.max").write_text("300000 100000")
    assert (usable_cores(), devices.usable_hardware_threads()) == (2, 3)


@pytest.mark.parametrize(
    ("text", "placement"),
    [
        ("cpu", Placement("cpu", "cpu")), ("cuda", Placement("cuda", "cuda")),
        ("encoder=cuda,decoder=cpu", Placement("cuda", "cpu")), ("decoder=cuda", Placement("cpu", "cuda")),
    ],
)  # fmt: skip
def test_parts_are_placed_together_or_apart(text: str, placement: Placement) -> None:
    assert Placement.parse(text) == Placement.parse(str(placement)) == placement


@pytest.mark.parametrize("text", ["tpu", "encoder=tpu", "front_end=cuda", "encoder=cuda,encoder=cpu", "encoder=", "="])
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="expected"):
        Placement.parse(text)
