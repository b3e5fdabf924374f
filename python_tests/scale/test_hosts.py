"""Two hosts joined by a link that is cut for a while: network namespaces, with a head and a worker of Ray in them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from icl_fast.measure import sweep

from .conftest import LONG, Command, at_work, below, contents, wait_for

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
PORT = "6385"
CUT = 8.0  # seconds; Ray gives a host up after some 25


def ip(*arguments: str) -> bool:
    """Whether `ip` could do it."""
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class Hosts:
    """A head and a worker of Ray with one core each, in network namespaces joined by a pair of virtual devices."""

    def __init__(self) -> None:
        self.names = {HEAD: f"icl-h-{os.getpid()}", WORKER: f"icl-w-{os.getpid()}"}
        self.started: list[subprocess.Popen[bytes]] = []
        if not ip("netns", "add", self.names[HEAD]):
            pytest.skip("network namespaces need iproute2 and the right to make them (CAP_NET_ADMIN, CAP_SYS_ADMIN)")

    def link(self) -> None:
        assert ip("netns", "add", self.names[WORKER])
        ends = ["link", "add", "icl0", "netns", self.names[HEAD], "type", "veth"]
        assert ip(*ends, "peer", "name", "icl0", "netns", self.names[WORKER])
        for address, name in self.names.items():
            assert ip("-n", name, "link", "set", "lo", "up")
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", "icl0")
        self.up()

    def up(self) -> None:
        for name in self.names.values():
            assert ip("-n", name, "link", "set", "icl0", "up")
            assert ip("-n", name, "route", "replace", "default", "dev", "icl0")  # by which Ray finds a host's address

    def cut(self, seconds: float) -> None:
        assert ip("-n", self.names[HEAD], "link", "set", "icl0", "down")
        time.sleep(seconds)
        self.up()

    def ray(self, address: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        command = ["ip", "netns", "exec", self.names[address], *program, f"--node-ip-address={address}", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.started.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
        return self.started[-1]

    def end(self) -> None:
        processes = {process.pid for process in self.started}
        for process in self.started:
            processes |= below(process.pid).keys()
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
        for name in self.names.values():
            ip("netns", "delete", name)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    hosts = Hosts()
    try:
        hosts.link()
        yield hosts
    finally:
        hosts.end()


@pytest.mark.slow
def test_a_link_that_is_cut(hosts: Hosts, run: Path, tmp_path: Path, commands: Callable[..., Command]) -> None:
    whole, out = contents(sweep(run, out=tmp_path / "whole.zarr", **LONG)), tmp_path / "there.zarr"
    head = hosts.ray(HEAD, "--head", f"--port={PORT}", "--include-dashboard=false")
    wait_for(lambda: any("raylet" in line for line in below(head.pid).values()))
    worker = hosts.ray(WORKER, f"--address={HEAD}:{PORT}")
    wait_for(lambda: any("raylet" in line for line in below(worker.pid).values()))
    within = ["ip", "netns", "exec", hosts.names[HEAD]]
    command = commands(run, out, "--ray", f"{HEAD}:{PORT}", within=within)
    wait_for(lambda: at_work(worker.pid) or command.process.poll() is not None)
    assert command.process.poll() is None, command.end()
    hosts.cut(CUT)
    code, said = command.end()
    assert code == 0, said
    assert contents(out) == whole
    assert all(process.poll() is None for process in (head, worker))  # which are others', and stay


@pytest.mark.slow
def test_without_the_token(
    hosts: Hosts, run: Path, tmp_path: Path, commands: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = hosts.ray(HEAD, "--head", f"--port={PORT}", "--include-dashboard=false")
    wait_for(lambda: any("raylet" in line for line in below(head.pid).values()))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    within = ["ip", "netns", "exec", hosts.names[HEAD]]
    code, said = commands(run, tmp_path / "out.zarr", "--ray", f"{HEAD}:{PORT}", within=within).end()
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: --ray: at {HEAD}:{PORT}: no connection (")
