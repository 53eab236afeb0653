"""Bytes that a process has sent over its TCP connections, by the kernel's account.

All of it counts, the transport's signs of life included, and nothing else: no TCP or IP headers, no acknowledgements.
The kernel's socket monitoring (sock_diag(7)) tells anyone, without privileges.  Unix sockets have no such account.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SOCK_DIAG: Final = 4  # netlink family
_BY_FAMILY: Final = 20  # message type: SOCK_DIAG_BY_FAMILY
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR: Final = 2  # message types
_DONE: Final = 3
_TCP_INFO: Final = 2  # INET_DIAG_INFO, as extension bit and as attribute
_ALL_STATES: Final = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
_ANSWER = struct.Struct("=68xI")  # struct inet_diag_msg, of which we want the inode
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_BYTES_SENT_AT: Final = 200  # offset in struct tcp_info, since Linux 4.19
_BYTES_SENT = struct.Struct("=Q")


class TcpBytes:
    """Counts what some processes send from now on.

    Args:
        pids: of this user, alive.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._before = self._now()

    def sent(self) -> int:
        """Bytes over the connections that these processes have now, since this object was made."""
        return sum(sent - self._before.get(inode, 0) for inode, sent in self._now().items())

    def _now(self) -> dict[int, int]:
        ours = {inode for pid in self._pids for inode in _socket_inodes(pid)}
        counted = {inode: sent for family in (socket.AF_INET, socket.AF_INET6) for inode, sent in _connections(family)}
        return {inode: sent for inode, sent in counted.items() if inode in ours}


def _socket_inodes(pid: int) -> Iterator[int]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        except FileNotFoundError:  # closed since
            continue
        if match is not None:
            yield int(match[1])


def _connections(family: int) -> Iterator[tuple[int, int]]:
    """All TCP connections of this network namespace: inode, bytes sent."""
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_TCP_INFO - 1), _ALL_STATES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as line:
        line.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 0, 0) + request)
        while True:
            for kind, body in _messages(line.recv(1 << 18)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", body)[0], os.strerror(-struct.unpack_from("=i", body)[0]))
                yield _ANSWER.unpack_from(body)[0], _bytes_sent(body[_ANSWER.size :])


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += _aligned(length)


def _bytes_sent(attributes: bytes) -> int:
    """From a connection's tcp_info; 0 for a listening socket."""
    at = 0
    while at < len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if kind == _TCP_INFO and length >= _ATTRIBUTE.size + _BYTES_SENT_AT + _BYTES_SENT.size:
            return int(_BYTES_SENT.unpack_from(attributes, at + _ATTRIBUTE.size + _BYTES_SENT_AT)[0])
        at += _aligned(length)
    return 0


def _aligned(length: int) -> int:
    return (length + 3) & ~3
