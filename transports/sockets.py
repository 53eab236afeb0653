"""Stream sockets for `addresses`: one that listens, one that is connected."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable
from typing import Any, Final

from adapm.errors import AddressInUse, TransportError

from . import addresses

_BACKLOG: Final = 1024  # connections that wait to be accepted; the system may allow fewer
_CREDENTIALS = struct.Struct("3i")  # process, user, group


def listening(address: str, endpoint: str) -> socket.socket:
    """A non-blocking socket that accepts connections.

    Args:
        address: what was asked for, for messages.
        endpoint: the same with its host name looked up.

    Raises:
        AddressInUse: somebody listens there.
        TransportError: it cannot be used; the message says why.
    """
    is_path = endpoint.startswith("ipc:")
    if is_path:
        addresses.check_socket_file(endpoint)
    try:
        listener = _listening_at_path(endpoint) if is_path else _listening_at_port(endpoint)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{address} is in use: another process listens there; choose another address"
                + ("" if is_path else ", or port 0 for any")
            ) from error
        advice = (
            "can this user make files there?" if is_path else "is it an address of this machine? tcp://*:PORT is all"
        )
        raise TransportError(f"cannot listen at {address}: {error.strerror or error}; {advice}") from error
    listener.setblocking(False)
    return listener


def endpoint_of(listener: socket.socket, endpoint: str) -> str:
    """Where a socket listens that was made for this endpoint, with the port that it has got."""
    if listener.family == socket.AF_UNIX:
        return endpoint
    host = addresses.host_port(endpoint)[0]
    port = listener.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


async def connected(endpoint: str, patience: float) -> socket.socket:
    """A non-blocking socket that is connected.

    Args:
        endpoint: an address without a host name.
        patience: seconds.

    Raises:
        asyncio.TimeoutError: there was no answer.
        OSError: it cannot be reached, or it is another user's process.
    """
    family, place = _place(endpoint)
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        await _in_time(asyncio.get_running_loop().sock_connect(sock, place), patience)
        if sock.getsockname() == sock.getpeername():  # may happen where nobody listens, at ports that clients get
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if is_of_another_user(sock):
            raise PermissionError(errno.EPERM, "a process of another user listens there")
    except BaseException:
        sock.close()
        raise
    return sock


async def _in_time(connecting: Awaitable[None], patience: float) -> None:
    """Not wait_for: before Python 3.12 it forgets a cancellation that comes together with the result."""
    task = asyncio.ensure_future(connecting)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask for it
    try:
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            raise asyncio.TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})  # it lets go of the socket before that is closed
    task.result()


def is_of_another_user(sock: socket.socket) -> bool:
    """Whether a connected unix socket's other end belongs to somebody else; of other sockets nobody knows."""
    if sock.family != socket.AF_UNIX:
        return False
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] != os.getuid())


def _place(endpoint: str) -> tuple[socket.AddressFamily, Any]:
    """What the socket module takes; a scope, as in fe80::1%eth0, is part of the host."""
    if endpoint.startswith("ipc:"):
        path = endpoint.partition("://")[2]
        return socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path
    host, port = addresses.host_port(endpoint)
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))


def _listening_at_path(endpoint: str) -> socket.socket:
    addresses.remove_socket_file(endpoint)
    family, place = _place(endpoint)
    listener = socket.socket(family)
    try:
        listener.bind(place)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _listening_at_port(endpoint: str) -> socket.socket:
    host, port = addresses.host_port(endpoint)
    everywhere = addresses.is_wildcard(endpoint)
    both = everywhere and host != "0.0.0.0" and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    return socket.create_server(
        ("" if everywhere else host, int(port)), family=family, backlog=_BACKLOG, dualstack_ipv6=both
    )
