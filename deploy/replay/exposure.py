"""Reachability of the replay server: public addresses of this machine at which its port answers.

Reverb listens on every interface and asks nobody for anything.
"""

import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

CONNECT_TIMEOUT_S = 0.5


def public_addresses() -> list[str]:
    """This machine's own addresses that the whole internet can route to.

    Without private, link-local and carrier-grade NAT's ones. An address that a router or a cloud translates to one of
    this machine's is not known here.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    own = {
        each.address for interface in psutil.net_if_addrs().values() for each in interface if each.family in families
    }
    return sorted(address for address in own if ipaddress.ip_address(address.partition("%")[0]).is_global)


def exposed(port: int) -> list[str]:
    """Those public addresses at which `port` accepts connections.

    They are tried from this machine itself, where packets pass a firewall that only looks at what comes from outside.
    """
    addresses = public_addresses()
    if not addresses:
        return []
    with ThreadPoolExecutor(len(addresses)) as pool:
        accepted = pool.map(lambda address: _accepts(address, port), addresses)
        return [address for address, yes in zip(addresses, accepted, strict=True) if yes]


def warning(port: int) -> str | None:
    """What to tell the user about a replay server on `port`; none where no public address reaches it."""
    addresses = exposed(port)
    if not addresses:
        return None
    reached = ", ".join(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses)
    return (
        f"the replay server answers anyone, without authentication, at {reached}; "
        f"where no firewall is in between, close it: {firewall_line(addresses, port)}"
    )


def firewall_line(addresses: Sequence[str], port: int) -> str:
    """A command that drops what comes to `port` at `addresses` from elsewhere; private addresses stay open."""
    commands = []
    for command, is_listed in (("iptables", lambda address: ":" not in address), ("ip6tables", lambda a: ":" in a)):
        listed = ",".join(filter(is_listed, addresses))
        if listed:
            commands.append(f"{command} -I INPUT ! -i lo -d {listed} -p tcp --dport {port} -j DROP")
    return " && ".join(commands)


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
