"""Reachability of the replay server: public addresses of this machine at which its port answers.

Reverb listens on every interface and has no authentication.
"""

import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, compress, repeat

import psutil

CONNECT_TIMEOUT_S = 0.5


def public_addresses() -> list[str]:
    """Returns this machine's own addresses that the whole internet can route to.

    Private and link-local addresses and those of carrier-grade NAT are left out. A public address that a router or a
    cloud translates to one of this machine's is not known here.
    """
    found = chain.from_iterable(psutil.net_if_addrs().values())
    own = {each.address for each in found if each.family in (socket.AF_INET, socket.AF_INET6)}
    return sorted(address for address in own if ipaddress.ip_address(address.partition("%")[0]).is_global)


def exposed(port: int) -> list[str]:
    """Returns the public addresses at which `port` accepts connections.

    This machine itself connects, so a firewall that only filters packets from outside does not count.
    """
    addresses = public_addresses()
    with ThreadPoolExecutor(max(len(addresses), 1)) as pool:
        return list(compress(addresses, pool.map(_accepts, addresses, repeat(port))))


def warning(port: int) -> str | None:
    """Returns a warning about a replay server on `port`; none if no public address reaches it."""
    addresses = exposed(port)
    if not addresses:
        return None
    reached = ", ".join(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses)
    return (
        f"the replay server answers anyone, without authentication, at {reached}; "
        f"unless a firewall protects it, close it: {firewall_line(addresses, port)}"
    )


def firewall_line(addresses: Sequence[str], port: int) -> str:
    """Returns a command that drops packets from elsewhere to `port` at `addresses`; other addresses stay open."""
    commands = []
    for command, is_ipv6 in (("iptables", False), ("ip6tables", True)):
        if listed := ",".join(address for address in addresses if (":" in address) == is_ipv6):
            commands.append(f"{command} -I INPUT ! -i lo -d {listed} -p tcp --dport {port} -j DROP")
    return " && ".join(commands)


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
