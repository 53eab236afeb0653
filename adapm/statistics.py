"""What a worker and its node have counted so far, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class NodeStatistics:
    """What one node did since it started; all of it counts, none of it ever goes down except where it says "now".

    Keys are counted, not operations, unless said otherwise; a row is one key's.
    """

    ticks: int  # times the node looked at its intents
    rounds: int  # rounds sent to owners of rows replicated here
    replies: int  # rounds of others answered
    nudges: int  # holders told that there is something for them
    bytes_out: int  # handed to the transport, and received from it, row traffic only
    bytes_in: int
    frames_out: int
    frames_in: int
    update_bytes: int  # of bytes_out: what replicas' workers changed, on its way to the owners
    state_bytes: int  # fresh copies for nodes that replicate rows
    grant_bytes: int  # rows that moved
    access_bytes: int  # pulls, pushes and sets of rows that were not local, and the answers
    refused: int  # frames that broke the protocol: their node was dropped
    relocations_in: int  # rows whose ownership came here, and left
    relocations_out: int
    replicas_made: int  # replicas that arrived here, and were dropped again
    replicas_dropped: int
    deltas_out: int  # replicas whose updates went to their owner, and came here to be applied
    deltas_in: int
    states_out: int  # rows that went fresh to a node that replicates them, and came fresh from their owner
    states_in: int
    wants_out: int  # rows asked for because of intent
    forwards: int  # requests passed on to where the row was thought to be
    refreshes: int  # times that changed rows were sent on, to their owner or to those who replicate them
    refresh_wait_us: int  # how long the first of them had waited, in microseconds: all together, and the longest
    refresh_wait_most_us: int
    pull_remote: int  # keys of own workers answered by other nodes
    push_remote: int
    pull_served: int  # keys of other nodes' workers answered here
    push_served: int
    intents_started: int  # rows that became wanted here, and stopped to be
    intents_ended: int
    intents_late: int  # of these, signalled when their clock had come already
    not_wanted_full: int  # rows that stayed remote because the memory for rows is used up
    accesses_late: int  # keys that a worker accessed while their row was on its way here: intent came too late for it
    accesses_no_room: int  # and such whose row stayed remote because memory is used up, in spite of intent
    rows_owned: int  # now: rows whose main copy is here
    rows_replica: int  # now: rows replicated here
    rows_pending: int  # now: rows asked for and not here yet
    parked: int  # pulls that waited for a row on its way here
    drain_ns: int  # time spent on what workers left in their rings: intents, changed rows
    calendar_ns: int  # on intents that begin and end
    extract_ns: int  # on rounds and replies: gathering what changed into frames
    apply_ns: int  # on frames of other nodes
    serve_ns: int  # on requests of own workers
    send_ns: int  # on handing frames to the transport
    cpu_ns: int  # CPU time of the node's process at its last tick, all threads: what the others leave of it is the
    # transport's own threads and receiving, and the event loop
    links_shm: int  # now: other nodes reached over shared memory or unix sockets
    links_tcp: int  # over TCP
    links_rdma: int  # over InfiniBand or another network that UCX knows; one link may count as several

    @classmethod
    def read(cls, struct: Any) -> NodeStatistics:
        """From the kernel's adapm_lane_stats, which has fields of the same names."""
        return cls(**{field.name: int(getattr(struct, field.name)) for field in fields(cls)})


@dataclass(frozen=True)
class WorkerStatistics:
    """What one worker did since it started.

    "local" are keys answered by the worker itself from this machine's memory: no other process took part.
    """

    pull_keys: int
    pull_local: int
    push_keys: int
    push_local: int
    set_keys: int
    intent_keys: int
    waits: int  # times a full ring or heap made the worker wait
    retries: int  # reads of a row repeated because it changed meanwhile
    room_ns: int  # time waited for room in a ring or the heap
    pull_ns: int  # and for the ends of pulls, and so on; several may be waited for at once
    push_ns: int
    set_ns: int
    sync_ns: int
    barrier_ns: int

    @property
    def local_fraction(self) -> float:
        """Share of the pulled keys that were local; 1.0 before the first pull."""
        return _share(self.pull_local, self.pull_keys)

    @property
    def push_local_fraction(self) -> float:
        """Share of the pushed keys that were applied locally at once; 1.0 before the first push."""
        return _share(self.push_local, self.push_keys)


@dataclass(frozen=True)
class Statistics(WorkerStatistics):
    """What one worker did since it started, and what its node did for all its workers."""

    node: NodeStatistics


# A worker's own counters, in the kernel's order.
COUNTERS = tuple(field.name for field in fields(WorkerStatistics))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
