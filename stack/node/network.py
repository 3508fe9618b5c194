"""One network namespace per pod, joined to the stack's bridge, and the thread that starts processes inside it."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pyroute2 import IPRoute

from stack.state import BRIDGE, NODE_ADDRESS, POD_NETWORK

_CLONE_NEWNET = 0x40000000
_LINK = "pod"
"""How the bridge's ends of the pods' links are called, before the last number of the pod's address."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Namespace:
    """A pod's network: it exists as long as this file descriptor or a process in it does."""

    descriptor: int
    address: str


class Network:
    """All pods' networks.

    Everything happens on one thread that lives as long as this process: bubblewrap's `--die-with-parent` follows the
    thread that forked, and a thread can enter another network namespace without its process.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._used: set[str] = set()
        self._last = 1

    def clean(self) -> None:
        """Remove the links of pods that an earlier process has left."""
        def remove() -> None:
            with IPRoute() as links:
                for link in links.get_links():
                    if link.get("ifname", "").startswith(_LINK):
                        links.link("del", index=link["index"])
        self._on_thread(remove)

    def open(self) -> Namespace:
        """Return a new network namespace with an address of its own. Raises OSError when there is none left."""
        return self._on_thread(self._open)

    def close(self, namespace: Namespace) -> None:
        """Give a pod's network and address back; its processes must have ended."""
        os.close(namespace.descriptor)
        self._used.discard(namespace.address)

    def start(self, namespace: Namespace | None, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in a pod's network, or in the stack's own; takes what Popen takes."""
        def start() -> subprocess.Popen[bytes]:
            if not namespace:
                return subprocess.Popen(argv, **options)
            return self._inside(namespace.descriptor, lambda: subprocess.Popen(argv, **options))
        return self._on_thread(start)

    def _on_thread(self, work: Callable[[], Answer]) -> Answer:
        return self._thread.submit(work).result()

    def _open(self) -> Namespace:
        address = self._choose()
        number = address.rpartition(".")[2]
        # The hardware address follows from the address: one that is used again must not be a stranger to neighbours.
        hardware = "0a:58:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        self._check(self._libc.unshare(_CLONE_NEWNET))
        try:
            descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            self._check(self._libc.setns(self._home, _CLONE_NEWNET))
        try:
            with IPRoute() as links:
                links.link("add", ifname=f"{_LINK}{number}", kind="veth",
                           peer={"ifname": "eth0", "net_ns_fd": descriptor, "address": hardware})
                links.link("set", index=links.link_lookup(ifname=f"{_LINK}{number}")[0], state="up",
                           master=links.link_lookup(ifname=BRIDGE)[0])
            self._inside(descriptor, lambda: _configure(address))
        except BaseException:
            os.close(descriptor)
            raise
        self._used.add(address)
        return Namespace(descriptor, address)

    def _choose(self) -> str:
        """Return the next free address in turn, so that one just given back rests for a while."""
        hosts = [str(host) for host in ipaddress.ip_network(POD_NETWORK).hosts()]
        for step in range(len(hosts)):
            place = (self._last + step) % len(hosts)
            if hosts[place] not in self._used | {NODE_ADDRESS}:
                self._last = place + 1
                return hosts[place]
        raise OSError(f"all {len(hosts)} addresses of {POD_NETWORK} are taken by pods")

    def _inside(self, descriptor: int, work: Callable[[], Answer]) -> Answer:
        self._check(self._libc.setns(descriptor, _CLONE_NEWNET))
        try:
            return work()
        finally:
            self._check(self._libc.setns(self._home, _CLONE_NEWNET))

    @staticmethod
    def _check(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, f"a pod's network namespace cannot be entered: {os.strerror(number)}")


def _configure(address: str) -> None:
    with IPRoute() as links:
        links.link("set", index=links.link_lookup(ifname="lo")[0], state="up")
        own = links.link_lookup(ifname="eth0")[0]
        links.addr("add", index=own, address=address, prefixlen=ipaddress.ip_network(POD_NETWORK).prefixlen)
        links.link("set", index=own, state="up")
        links.route("add", dst="default", gateway=NODE_ADDRESS)
