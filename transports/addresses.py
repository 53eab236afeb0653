"""Addresses of sockets: `tcp://host:port` and `ipc://path` (`ipc://@name` is abstract: no file)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import stat
from pathlib import Path

from adapm.errors import AddressInUse, KeyNeeded, TransportError

_WILDCARDS = frozenset({"*", "0.0.0.0", "::"})


def private(variant: str) -> str:
    """An address for this machine's own processes, any free one."""
    return "tcp://127.0.0.1:0" if variant == "tcp" else f"ipc://@adapm-{secrets.token_hex(8)}"


def check(address: str) -> str:
    """The address itself.

    Raises:
        TransportError: it is none of these.
    """
    scheme, _, rest = address.partition("://")
    if not rest or (scheme != "ipc" and (scheme != "tcp" or not _is_host_port(rest))):
        raise TransportError(f"{address!r} is no address of a socket; write tcp://host:port or ipc:///path")
    return address


def host_port(address: str) -> tuple[str, str]:
    """Host, without brackets, and port of a tcp address that was checked."""
    host, _, port = address.partition("://")[2].rpartition(":")
    return host.strip("[]"), port


def is_wildcard(address: str) -> bool:
    """Whether it stands for every network of this machine."""
    return address.startswith("tcp:") and host_port(address)[0] in _WILDCARDS


def is_local(endpoint: str) -> bool:
    """Whether only this machine's processes can reach an address without a host name."""
    if endpoint.startswith("ipc:"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host_port(endpoint)[0].partition("%")[0]).is_loopback
    return False


def check_protected(address: str, endpoint: str, protected: bool) -> None:
    """Makes sure that nodes do not meet in the open by accident.

    Args:
        address: what was asked for, for the message.
        endpoint: the same with its host name looked up.
        protected: whether there is a key, or the user has said that none is wanted.

    Raises:
        KeyNeeded: other machines can reach it, and there is no key.
    """
    if not protected and not is_local(endpoint):
        raise KeyNeeded(
            f"{address} is on a network, and this node has no cluster key: run `adapm keys` and copy the file to every"
            " host (key_file); or, where everybody in that network may read and change all rows, set insecure=true"
        )


def with_host(address: str, host: str) -> str:
    """The same port at another host."""
    return f"tcp://[{host}]:{host_port(address)[1]}" if ":" in host else f"tcp://{host}:{host_port(address)[1]}"


async def resolve(address: str) -> list[str]:
    """The address with its host name looked up: one address for each answer, at least one.

    Raises:
        OSError: the name has no address.
    """
    if address.startswith("ipc:") or is_wildcard(address):
        return [address]
    host, port = host_port(address)
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return [address]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(with_host(address, str(entry[4][0])) for entry in found))


def advertised(endpoint: str) -> str:
    """What others can connect to, for an endpoint that is bound; a wildcard becomes this host's address or name."""
    if not is_wildcard(endpoint):
        return endpoint
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            if not ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback:
                return with_host(endpoint, str(entry[4][0]))
    return with_host(endpoint, name)


def check_socket_file(address: str) -> None:
    """Makes sure that nobody is robbed when whatever is at the path is removed before binding, as zmq does by itself.

    Raises:
        AddressInUse: somebody listens there.
        TransportError: there is a file that is no socket.
    """
    path = address.partition("://")[2]
    if path.startswith("@") or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise TransportError(f"{address} cannot be used: {path} is not a socket; choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise AddressInUse(f"{address} is in use: another process listens there; choose another address")


def remove_socket_file(address: str) -> None:
    """Removes what binding the address has made, or some dead process has left there."""
    path = address.partition("ipc://")[2]
    if path and not path.startswith("@"):
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


def _is_host_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    return bool(host) and (bracketed or ":" not in host) and port.isdecimal() and int(port) < 65536
