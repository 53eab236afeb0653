"""The registry finds transports by name, built in or installed by others."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from adapm.transports.inproc import InprocNetwork, InprocTransport
from adapm.transports.tcp import TcpTransport
from adapm.transports.zmq import ZmqTransport

from adapm import transport
from adapm.errors import TransportError, UnknownTransport

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Pigeon(transport.Transport):
    """A transport of somebody else's."""

    scheme = "pigeon"

    async def listen(self, address: str | None = None) -> str:
        return "roof"

    async def connect(self, peer: int, address: str) -> None:
        return None

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        return None

    def queued(self, peer: int) -> int:
        return 0

    async def close(self, linger: float = 2.0) -> None:
        return None


def _make(name: str, **options: Any) -> transport.Transport:
    return transport.create(name, 3, on_frame=lambda peer, frame: None, on_lost=lambda peer, error: None, **options)


def _install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    installed = [EntryPoint(name, value, transport.GROUP)]
    monkeypatch.setattr(transport, "entry_points", lambda group: installed if group == transport.GROUP else [])


def test_built_in_transports_need_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "entry_points", lambda group: [])
    assert transport.known() == ["inproc", "tcp", "ucx", "zmq"]
    assert isinstance(_make("inproc", network=InprocNetwork()), InprocTransport)
    assert isinstance(_make("tcp"), TcpTransport)
    assert isinstance(_make("zmq"), ZmqTransport)


@pytest.mark.parametrize("name", ["zmq", "zmq+tcp", "zmq+ipc", "zmq://anything", "zmq+ipc:///path"])
def test_scheme_variant_and_uri(name: str) -> None:
    made = _make(name)
    assert isinstance(made, ZmqTransport) and made.node == 3


def test_class_and_registry_agree_on_the_scheme() -> None:
    assert (InprocTransport.scheme, ZmqTransport.scheme) == ("inproc", "zmq")


def test_unknown_scheme_names_the_known_and_the_extra() -> None:
    with pytest.raises(UnknownTransport, match=r"'sctp'.*inproc, tcp, ucx, zmq.*pip install 'adapm\[sctp\]'"):
        _make("sctp")
    assert issubclass(UnknownTransport, TransportError) and issubclass(UnknownTransport, ValueError)


@pytest.mark.parametrize("name", ["zmq+udp", "inproc+tcp", "tcp+udp"])
def test_unknown_variant(name: str) -> None:
    with pytest.raises(UnknownTransport, match="variant"):
        _make(name, **({"network": InprocNetwork()} if name.startswith("inproc") else {}))


def test_installed_transport_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "pigeon", f"{__name__}:Pigeon")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Pigeon=Pigeon))
    assert transport.known() == ["inproc", "pigeon", "tcp", "ucx", "zmq"]
    assert isinstance(_make("pigeon"), Pigeon)


@pytest.mark.parametrize("value", ["no_such_module_at_all:Pigeon", "adapm.transport:NoSuchName"])
def test_transport_that_does_not_load(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    _install(monkeypatch, "pigeon", value)
    with pytest.raises(UnknownTransport, match=r"cannot be loaded.*adapm\[pigeon\]"):
        _make("pigeon")


def test_entry_point_that_is_no_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "pigeon", "json:JSONDecoder")
    with pytest.raises(UnknownTransport, match="not a subclass"):
        _make("pigeon")
