"""The transport that the settings of a run describe."""

from __future__ import annotations

from adapm.config import Config
from adapm.shaping import ShapedTransport
from adapm.transport import OnFrame, OnLost, Transport, create, find


def configured(
    config: Config, node: int, *, on_frame: OnFrame, on_lost: OnLost, max_frame: int | None = None
) -> Transport:
    """A new transport as the settings say: its name, its key and patience, and how slow its links are to be.

    Args:
        config: the settings.
        node, on_frame, on_lost: see `Transport`.
        max_frame: bytes of the longest frame that the nodes of this run send, None if that is not known.

    Raises:
        KeyFileError: the cluster key cannot be had.
        UnknownTransport: as `transport.create`.
    """
    kind, _ = find(config.transport)
    options: dict[str, object] = {"connect_timeout": config.startup_timeout}
    if kind.authenticates:
        key = config.cluster_key()
        options.update(key=key and key.secret, insecure=config.insecure)
    if kind.bounds_frames and max_frame is not None:
        options["max_frame"] = max_frame
    if kind.spins:
        options["spin"] = config.spin / 1e6

    def make(on_frame: OnFrame, on_lost: OnLost) -> Transport:
        return create(config.transport, node, on_frame=on_frame, on_lost=on_lost, **options)

    shape = {"bandwidth": config.link_bandwidth, "latency": config.link_latency}
    if not any(shape.values()):
        return make(on_frame, on_lost)
    return ShapedTransport(make, node, on_frame=on_frame, on_lost=on_lost, **shape)
