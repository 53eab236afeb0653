"""Where a launcher has put this process: which node of how many, which worker of that node, and where they all meet.

    torchrun, Ray Train    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT, GROUP_RANK or NODE_RANK
    mpirun (Open MPI)      OMPI_COMM_WORLD_RANK, ..._SIZE, ..._LOCAL_RANK, ..._LOCAL_SIZE
    srun                   SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_STEP_...
    none of them           the settings nodes, node, workers, rendezvous, job; else this process is all there is

A process's rank is the id that its worker gets.  Launchers start each other: the one listed first is believed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from adapm.config import Config, environment_name
from adapm.errors import ConfigError

_PORTS: Final = range(15_000, 25_000)  # for jobs that bring none: below those that systems hand out
_LAST_PORT: Final = 65_535
_COUNTED: Final = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # an item of SLURM's "2(x3),1"
_BRACKETS: Final = re.compile(r"\[([^],-]*)[^]]*]")  # of SLURM's "rack[2-3]host[01-16,20]"


@dataclass(frozen=True)
class Place:
    """Where this process is.

    Attributes:
        launcher: who has put it there, for messages.
        node, nodes: its node, of how many.
        slot, workers: its place at the node, of how many; slot None: any that is free.
        rank: of how many processes in all; None: whatever it comes to.
        size: how many processes there are in all; None: not known.
        host, port: where the first node listens; None: not known.
        job: tells the processes of one run from those of others; "" if nothing does.
    """

    launcher: str
    node: int = 0
    nodes: int = 1
    slot: int | None = None
    workers: int = 1
    rank: int | None = None
    size: int | None = None
    host: str | None = None
    port: int | None = None
    job: str = ""


def settle(config: Config, env: Mapping[str, str] = os.environ) -> tuple[Config, Place]:
    """The settings and the place of this process.

    Args:
        config: its settings; what they say explicitly must fit to what the launcher says.
        env: the launcher's variables.

    Returns:
        The settings with `nodes`, `node`, `workers` and, of several nodes, `rendezvous` as they are for this process.

    Raises:
        ConfigError: a variable is missing or makes no sense, variables or settings contradict each other, or nothing
            says where the nodes meet, or how the processes of this machine find each other.
    """
    if config.threads:
        raise ConfigError(
            f"workers={config.workers!r} (from: {config.origin('workers')}), but a process that attaches is one worker:"
            " give the number of such processes on this machine, or leave it out"
        )
    place = find(env) or _by_settings(config)
    for name in ("nodes", "node", "workers"):
        ours, theirs = config.show(name), str(getattr(place, name))
        if config.origin(name) != "default" and ours != theirs:
            raise ConfigError(
                f"{name}={ours} (from: {config.origin(name)}), but {place.launcher} says {theirs}: leave out {name}"
            )
    place = dataclasses.replace(place, job=config.job or place.job)
    if place.workers > 1 and not place.job:
        raise ConfigError(
            f"workers={place.workers}, but nothing tells the processes of this run from those of others: give all the"
            f" same job=NAME ({environment_name('job')}), or set MASTER_ADDR and MASTER_PORT"
        )
    settled = dataclasses.replace(
        config,
        nodes=place.nodes,
        node=place.node,
        workers=str(place.workers),
        rendezvous=config.rendezvous or _rendezvous(place),
    )
    return settled, place


def find(env: Mapping[str, str]) -> Place | None:
    """The place that a launcher's variables tell, None if there are none.

    Raises:
        ConfigError: a variable is missing or makes no sense, or they contradict each other.
    """
    if "TORCHELASTIC_RUN_ID" in env:
        return _torch(env, "torchrun")
    outer = _open_mpi(env) or _slurm(env)
    if not {"RANK", "WORLD_SIZE"} & env.keys():
        return outer
    if outer is None:
        return _torch(env, "RANK, WORLD_SIZE, ...")
    rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if (rank, size) != (outer.rank, outer.size):
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={size}, but {outer.launcher} has started this process as number {outer.rank}"
            f" of {outer.size}: unset the variables of the one that is not meant"
        )
    return outer


def _by_settings(config: Config) -> Place:
    if config.nodes > 1 and config.node is None:
        raise ConfigError(
            f"nodes={config.nodes}, but nothing says of which node this process is: set {environment_name('node')} and"
            f" {environment_name('rendezvous')}, or use a launcher (torchrun, srun, mpirun)"
        )
    alone = config.origin("workers") == "default"
    workers = 1 if alone else config.worker_count
    return Place("this process", config.node or 0, config.nodes, None, workers, job=config.rendezvous or "")


def _torch(env: Mapping[str, str], launcher: str) -> Place:
    """What torchrun sets, and those who imitate it."""
    rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if size == 1:
        env = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **env}
    slot, workers = _number(env, "LOCAL_RANK"), _number(env, "LOCAL_WORLD_SIZE")
    _check(slot < workers, f"LOCAL_RANK={slot} is not below LOCAL_WORLD_SIZE={workers}")
    _check(rank < size, f"RANK={rank} is not below WORLD_SIZE={size}")
    if "GROUP_WORLD_SIZE" in env:  # then machines may have different numbers of processes
        node, nodes = _number(env, "GROUP_RANK"), _number(env, "GROUP_WORLD_SIZE")
        _check(node < nodes, f"GROUP_RANK={node} is not below GROUP_WORLD_SIZE={nodes}")
    else:
        node, nodes = _evenly(("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", slot), ("LOCAL_WORLD_SIZE", workers))
    host, port = _master(env)
    parts = [env.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]
    job = "" if host is None else " ".join(["torch", host, str(port), *parts])
    return Place(launcher, node, nodes, slot, workers, rank, size, host, port, job)


def _open_mpi(env: Mapping[str, str]) -> Place | None:
    prefix = "OMPI_COMM_WORLD_"
    if f"{prefix}RANK" not in env:
        return None
    rank, size, slot, workers = (
        (prefix + name, _number(env, prefix + name)) for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    )
    node, nodes = _evenly(rank, size, slot, workers)
    names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")
    job = next((f"mpi {env[name]}" for name in names if name in env), "")
    host, port = _master(env)
    if host is not None and not job:
        job = f"mpi {host} {port}"
    return Place("mpirun", node, nodes, slot[1], workers[1], rank[1], size[1], host, port, job)


def _slurm(env: Mapping[str, str]) -> Place | None:
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:  # a batch script, which srun has not started
        return None
    rank, slot, node = (_number(env, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
    size = _number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    nodes = _number(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    told = _text(env, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    tasks = [count for item in told.split(",") for count in _counted(item, told)]
    if len(tasks) != nodes or sum(tasks) != size or node >= nodes or slot >= tasks[node]:
        raise ConfigError(
            f"SLURM's variables contradict each other: {size} tasks on {nodes} nodes, but {told} tasks per node, and"
            f" this is task {slot} of node {node}"
        )
    host, port = _master(env)
    if host is None:
        host = _first_host(_text(env, "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"))
    job = f"slurm {_text(env, 'SLURM_JOB_ID')} {env['SLURM_STEP_ID']}"
    port = _PORTS[zlib.crc32(job.encode()) % len(_PORTS)] if port is None else port
    return Place("srun", node, nodes, slot, tasks[node], rank, size, host, port, job)


def _evenly(
    rank: tuple[str, int], size: tuple[str, int], slot: tuple[str, int], workers: tuple[str, int]
) -> tuple[int, int]:
    """The node, of how many, if all have equally many processes, whose ranks follow each other; each with its name."""
    (rank_name, r), (size_name, n), (slot_name, s), (workers_name, w) = rank, size, slot, workers
    _check(w > 0 and n % w == 0, f"{size_name}={n} is no multiple of {workers_name}={w}")
    _check(r < n, f"{rank_name}={r} is not below {size_name}={n}")
    _check(
        r % w == s,
        f"{rank_name}={r} with {slot_name}={s} and {workers_name}={w} are not numbered machine by machine"
        " (mpirun --map-by slot)",
    )
    return r // w, n // w


def _master(env: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Where the first node listens, by the usual variables: their port plus one, since theirs is torch's own."""
    if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
        return None, None
    port = _number(env, "MASTER_PORT")
    _check(0 < port <= _LAST_PORT, f"MASTER_PORT={port} is no port")
    return env["MASTER_ADDR"], port + 1 if port < _LAST_PORT else port - 1


def _rendezvous(place: Place) -> str | None:
    if place.nodes == 1:
        return None
    if place.host is None or place.port is None:
        raise ConfigError(
            f"{place.launcher} says nodes={place.nodes}, but not where they meet: set MASTER_ADDR to the first machine"
            f" and MASTER_PORT (mpirun -x MASTER_ADDR -x MASTER_PORT), or {environment_name('rendezvous')}"
        )
    return f"tcp://[{place.host}]:{place.port}" if ":" in place.host else f"tcp://{place.host}:{place.port}"


def _first_host(hosts: str) -> str:
    """Of SLURM's "rack[2-3]host[01-16,20],other": rack2host01."""
    return _BRACKETS.sub(r"\1", hosts).partition(",")[0]


def _counted(item: str, told: str) -> Iterator[int]:
    match = _COUNTED.fullmatch(item)
    if match is None:
        raise ConfigError(f"SLURM's tasks per node, {told!r}, are not of the form 2(x3),1")
    yield from [int(match[1])] * int(match[2] or 1)


def _number(env: Mapping[str, str], *names: str) -> int:
    """The first of the variables that is there."""
    text = _text(env, *names)
    if not text.isdecimal():
        name = next(name for name in names if name in env)
        raise ConfigError(f"{name}={text!r} is no number: it is what a launcher sets")
    return int(text)


def _text(env: Mapping[str, str], *names: str) -> str:
    for name in names:
        if name in env:
            return env[name]
    raise ConfigError(f"{names[0]} is missing, though other variables of its launcher are there: set it, or unset them")


def _check(fits: bool, complaint: str) -> None:
    if not fits:
        raise ConfigError(f"{complaint}: these variables are what a launcher sets, and do not fit to each other")
