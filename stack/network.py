"""The stack's private network: loopback with the service addresses, and the bridge that pods are attached to.

Runs once inside the stack's own network namespace, before any service. No packet filter is needed: the service network
is local as a whole, so whatever HAProxy binds there answers, and everything else is refused at once.
"""

from __future__ import annotations

import ipaddress
import sys

from pyroute2 import IPRoute

from stack.state import BRIDGE, NODE_ADDRESS, OUTSIDE_ADDRESS, POD_NETWORK, SERVICE_NETWORK


def prepare() -> None:
    """Bring up loopback, service addresses and bridge of the current network namespace; repeatable.

    Raises netlink's OSError where the caller may not administer the namespace.
    """
    with IPRoute() as links:
        loopback = links.link_lookup(ifname="lo")[0]
        links.link("set", index=loopback, state="up")
        if not links.link_lookup(ifname=BRIDGE):
            # A hardware address of its own: a bridge's follows its links otherwise, and pods would lose it when one goes.
            links.link("add", ifname=BRIDGE, kind="bridge", address="0a:58:0a:f4:00:01")
        bridge = links.link_lookup(ifname=BRIDGE)[0]
        links.addr("replace", index=loopback, address=OUTSIDE_ADDRESS, prefixlen=32)
        links.addr("replace", index=bridge, address=NODE_ADDRESS,
                   prefixlen=ipaddress.ip_network(POD_NETWORK).prefixlen)
        links.link("set", index=bridge, state="up")
        links.route("replace", dst=SERVICE_NETWORK, oif=loopback, type="local", table=255, scope="host")


if __name__ == "__main__":
    try:
        prepare()
    except OSError as error:
        sys.exit(f"the private network of the stack cannot be set up: {error}")
