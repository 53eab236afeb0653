"""Control messages over stream sockets, one class for event loops and one for threads that block."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from adapm import control
from adapm.control import Message, StreamDecoder
from adapm.errors import ProtocolError

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_CHUNK = 1 << 16  # bytes read at once
_INT = array.array("i").itemsize
_FDS_SPACE = socket.CMSG_SPACE(3 * _INT)  # for the descriptors that come with one message


def credentials(sock: socket.socket) -> tuple[int, int]:
    """The pid and uid of the process at the other end of a unix socket."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


class AsyncStream:
    """Messages over a connected socket, which becomes non-blocking and belongs to this object.

    Args:
        limit: bytes of the longest message that is believed.
    """

    def __init__(self, sock: socket.socket, limit: int = control.MAX_MESSAGE) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = StreamDecoder(limit)

    async def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Sends the message, with descriptors; OSError when nobody is there to receive it."""
        data = control.encode_stream(message)
        sent = socket.send_fds(self._socket, [data], fds) if fds else 0
        await asyncio.get_running_loop().sock_sendall(self._socket, memoryview(data)[sent:])

    def send_nowait(self, message: Message) -> None:
        """Sends a short message if it fits into the socket's buffer and somebody is there; else to nobody."""
        with contextlib.suppress(OSError):
            self._socket.send(control.encode_stream(message))

    async def receive(self) -> Message:
        """The next message.

        Raises:
            EOFError: the other side has hung up.
            ProtocolError: it speaks another language.
        """
        loop = asyncio.get_running_loop()
        while (message := self._decoder.next()) is None:
            try:
                data = await loop.sock_recv(self._socket, _CHUNK)
            except OSError as error:
                raise EOFError("the other side is gone") from error
            if not data:
                raise EOFError("the other side hung up")
            self._decoder.feed(data)
        return message

    async def wait_closed(self) -> None:
        """Returns when the other side has hung up; what it still says is not heard."""
        with contextlib.suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(self._socket, _CHUNK):
                pass

    def hang_up(self) -> None:
        """Makes `receive` raise EOFError once all that was sent has been received, whoever holds the other end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Hangs up. Nobody may be waiting in another method."""
        self._socket.close()


@contextlib.contextmanager
def watched(stream: AsyncStream, pid: int) -> Iterator[None]:
    """Makes the end of the process an end of file on the connection, whoever else holds its other end."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # gone already, or in a pid namespace that we cannot see: the connection alone must tell
        yield
        return

    def hang_up() -> None:
        loop.remove_reader(pidfd)
        stream.hang_up()

    loop.add_reader(pidfd, hang_up)
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


class BlockingStream:
    """Messages over a blocking unix socket, and the descriptors that come with them.

    Args:
        sock: connected; None: to be connected.
    """

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if sock is None else sock
        self._decoder = StreamDecoder()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self._socket.fileno()

    def connect(self, address: str) -> None:
        """Connects to "@name", an abstract address."""
        self._socket.connect(address.replace("@", "\0", 1))

    def peer(self) -> tuple[int, int]:
        """The pid and uid of the process that listened where this is connected to, or made the pair that this is of."""
        return credentials(self._socket)

    def send(self, message: Message) -> None:
        """Sends the message; OSError when nobody is there to receive it."""
        self._socket.sendall(control.encode_stream(message))

    def receive(self, timeout: float | None = None) -> Message:
        """The next message.

        Args:
            timeout: seconds of silence to bear.

        Raises:
            EOFError: the other side has hung up.
            TimeoutError: it has not said anything for so long.
            ProtocolError: it speaks another language.
        """
        self._socket.settimeout(timeout)
        while (message := self._decoder.next()) is None:
            # socket.recv_fds would do, but ignores its flags before Python 3.12, and children must not inherit these
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
            for _, _, fds in ancillary:
                self._fds += array.array("i", fds[: len(fds) - len(fds) % _INT])  # a cut list may end in half a number
            if not data:
                raise EOFError("the other side hung up")
            self._decoder.feed(data)
        return message

    def take_fds(self, n: int) -> list[int]:
        """The descriptors that have come; closing them is the caller's business from now on.

        Raises:
            ProtocolError: it is another number of them.
        """
        if len(self._fds) != n:
            raise ProtocolError(
                f"{len(self._fds)} descriptors came instead of {n}: raise the limit of open files (ulimit -n)"
            )
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Hangs up, and closes descriptors that nobody took."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._socket.close()
