r"""Several hosts on one machine: network namespaces, joined by a bridge, whose links can be cut.

    hub    bridge --- port0 ======= eth0   host 0   10.77.0.1
                  \-- port1 ======= eth0   host 1   10.77.0.2   ...

The namespaces have no names: they are held by descriptors of the process that made them, and vanish with it, and with
them all links, whatever happens.  Needs root, and the commands `ip` and `nsenter`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading

_CLONE_NEWNET = 0x40000000
_NETWORK = "10.77.0"
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why namespaces cannot be made here; "" if they can."""
    for command, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(command) is None:
            return f"there is no `{command}`: install {package}"
    try:
        with Hosts(1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces need root: {getattr(error, 'stderr', '') or error}"


def enter(namespace: int) -> None:
    """Moves the calling thread, and whatever it starts from now on, into the namespace of this descriptor."""
    _check(_libc.setns(namespace, _CLONE_NEWNET))


def address(host: int) -> str:
    """The IP address of a host."""
    return f"{_NETWORK}.{host + 1}"


class Hosts:
    """So many of them, for as long as the body of a `with` runs."""

    def __init__(self, number: int) -> None:
        self._silent: set[tuple[int, int]] = set()
        with contextlib.ExitStack() as stack:
            self._hub = _namespace(stack)
            self.namespaces = [_namespace(stack) for _ in range(number)]
            """Descriptors, for `enter`."""
            _ip(self._hub, "link add bridge0 type bridge")
            _ip(self._hub, "link set bridge0 up")
            for host, namespace in enumerate(self.namespaces):
                self._plug_in(host, namespace)
            self._undo = stack.pop_all()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def cut(self, host: int) -> None:
        """Nothing comes from the host or to it any more, as if its cable were unplugged."""
        _ip(self._hub, f"link set port{host} down")

    def mend(self, host: int) -> None:
        """The opposite."""
        _ip(self._hub, f"link set port{host} up")

    def silence(self, host: int, towards: int) -> None:
        """What this host sends to that one gets lost; the other direction works."""
        self._silent.add((host, towards))
        _ip(self.namespaces[host], f"route replace blackhole {address(towards)}/32")

    def unsilence(self, host: int, towards: int) -> None:
        """The opposite; may be called again."""
        if (host, towards) in self._silent:
            self._silent.remove((host, towards))
            _ip(self.namespaces[host], f"route del blackhole {address(towards)}/32")

    def _plug_in(self, host: int, namespace: int) -> None:
        _ip(self._hub, f"link add port{host} type veth peer name eth0 netns {_path(namespace)}")
        _ip(self._hub, f"link set port{host} master bridge0 up")
        _ip(namespace, f"addr add {address(host)}/24 dev eth0")
        _ip(namespace, "link set eth0 up")
        _ip(namespace, "link set lo up")


def _namespace(stack: contextlib.ExitStack) -> int:
    """A new namespace; the calling thread stays where it is."""
    made: list[int | OSError] = []

    def make() -> None:
        try:
            _check(_libc.unshare(_CLONE_NEWNET))
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make, name="makes a namespace")
    thread.start()
    thread.join()
    (outcome,) = made
    if isinstance(outcome, OSError):
        raise outcome
    stack.callback(os.close, outcome)
    return outcome


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _ip(namespace: int, command: str) -> None:
    inside = ["nsenter", f"--net={_path(namespace)}", "ip", *command.split()]
    subprocess.run(inside, check=True, capture_output=True, text=True)
