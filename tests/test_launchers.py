"""Launchers' variables: where they put a process, and the contradictions that are refused."""

from __future__ import annotations

import pytest

from adapm import Config, launchers
from adapm.errors import ConfigError
from adapm.launchers import Place


def torch(rank: int, size: int, slot: int, workers: int, **more: str) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": slot, "LOCAL_WORLD_SIZE": workers}
    return {**{name: str(n) for name, n in numbers.items()}, "MASTER_ADDR": "host1", "MASTER_PORT": "29500", **more}


def slurm(**changes: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_NUM_NODES": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
        "SLURM_STEP_NODELIST": "rack[2-3]host[01-16,20],login",
        **changes,
    }


def mpi(rank: int, size: int, slot: int, workers: int) -> dict[str, str]:
    numbers = {"RANK": rank, "SIZE": size, "LOCAL_RANK": slot, "LOCAL_SIZE": workers}
    return {**{f"OMPI_COMM_WORLD_{name}": str(n) for name, n in numbers.items()}, "PMIX_NAMESPACE": "prte-1@1"}


def settled(env: dict[str, str], **settings: object) -> tuple[Config, Place]:
    return launchers.settle(Config.load(None, settings, env={}, file=None), env)


# ---- what is told


def test_without_a_launcher_this_process_is_all_there_is() -> None:
    config, place = settled({})
    assert (config.nodes, config.node, config.workers, config.rendezvous) == (1, 0, "1", None)
    assert (place.rank, place.slot) == (None, None)


def test_settings_say_it_where_there_is_no_launcher() -> None:
    config, place = settled({}, nodes=2, node=1, workers=3, rendezvous="tcp://a:7")
    assert (config.nodes, config.node, config.workers, config.rendezvous) == (2, 1, "3", "tcp://a:7")
    assert place.job == "tcp://a:7"


def test_torchrun_numbers_machine_by_machine_and_nodes_meet_beside_torch_s_store() -> None:
    env = torch(3, 4, 1, 2, TORCHELASTIC_RUN_ID="none", GROUP_RANK="1", GROUP_WORLD_SIZE="2")
    config, place = settled(env)
    assert (config.nodes, config.node, config.workers) == (2, 1, "2")
    assert (place.launcher, place.rank, place.slot) == ("torchrun", 3, 1)
    assert config.rendezvous == "tcp://host1:29501"


def test_torchrun_restarts_are_runs_of_their_own() -> None:
    first, second = (
        launchers.find(torch(0, 1, 0, 1, TORCHELASTIC_RUN_ID="x", TORCHELASTIC_RESTART_COUNT=count)) for count in "01"
    )
    assert first is not None and second is not None and first.job != second.job


def test_machines_may_have_different_numbers_if_the_launcher_counts_them() -> None:
    place = launchers.find(torch(4, 5, 0, 1, GROUP_RANK="1", GROUP_WORLD_SIZE="2"))
    assert place is not None and (place.node, place.nodes, place.workers) == (1, 2, 1)


def test_without_torchrun_ranks_are_divided() -> None:
    config, place = settled(torch(5, 6, 1, 2))
    assert (config.nodes, config.node, place.rank) == (3, 2, 5)


def test_a_single_process_needs_no_local_rank() -> None:
    place = launchers.find({"RANK": "0", "WORLD_SIZE": "1"})
    assert place is not None and (place.nodes, place.workers, place.slot) == (1, 1, 0)


def test_the_last_port_and_addresses_of_six() -> None:
    config, _ = settled(torch(1, 2, 0, 1, MASTER_ADDR="fe80::1", MASTER_PORT="65535"))
    assert config.rendezvous == "tcp://[fe80::1]:65534"


def test_srun_tells_tasks_per_node_and_the_first_host() -> None:
    config, place = settled(slurm())
    assert (config.nodes, config.node, config.workers, place.slot, place.rank) == (4, 2, "2", 1, 5)
    assert place.host == "rack2host01" and place.port in range(15_000, 25_000)
    last = launchers.find(slurm(SLURM_PROCID="6", SLURM_NODEID="3", SLURM_LOCALID="0"))
    assert last is not None and (last.workers, last.port, last.job) == (1, place.port, place.job)


def test_srun_with_the_usual_variables_for_the_first_node() -> None:
    config, _ = settled(slurm(MASTER_ADDR="elsewhere", MASTER_PORT="4000"))
    assert config.rendezvous == "tcp://elsewhere:4001"


def test_a_batch_script_is_no_task_of_srun() -> None:
    env = slurm()
    del env["SLURM_STEP_ID"]
    assert launchers.find(env) is None


def test_mpirun_within_an_allocation() -> None:
    env = {**slurm(), **mpi(3, 4, 1, 2), "MASTER_ADDR": "host1", "MASTER_PORT": "4000"}
    config, place = settled(env)
    assert (place.launcher, config.node, place.slot, place.rank) == ("mpirun", 1, 1, 3)
    assert config.rendezvous == "tcp://host1:4001"


def test_a_script_that_passes_on_what_srun_said() -> None:
    place = launchers.find(slurm(RANK="5", WORLD_SIZE="7", MASTER_ADDR="host1", MASTER_PORT="4000"))
    assert place is not None and (place.launcher, place.node, place.host) == ("srun", 2, "host1")


def test_torchrun_within_srun_is_believed() -> None:
    place = launchers.find({**slurm(), **torch(0, 1, 0, 1, TORCHELASTIC_RUN_ID="x")})
    assert place is not None and place.launcher == "torchrun"


def test_a_job_s_name_goes_before_the_launcher_s() -> None:
    assert settled(torch(0, 2, 0, 2), job="mine")[1].job == "mine"


# ---- what is refused


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (torch(0, 3, 0, 2), "WORLD_SIZE=3 is no multiple of LOCAL_WORLD_SIZE=2"),
        (torch(4, 4, 0, 2), "RANK=4 is not below WORLD_SIZE=4"),
        (torch(0, 4, 2, 2), "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2"),
        (torch(1, 4, 0, 2), r"RANK=1 with LOCAL_RANK=0 and LOCAL_WORLD_SIZE=2 are not numbered machine by machine"),
        (torch(1, 2, 0, 1, GROUP_RANK="2", GROUP_WORLD_SIZE="2"), "GROUP_RANK=2 is not below GROUP_WORLD_SIZE=2"),
        (torch(0, 2, 0, 2, MASTER_PORT="70000"), "MASTER_PORT=70000 is no port"),
        (torch(0, 2, 0, 2, LOCAL_RANK="first"), "LOCAL_RANK='first' is no number"),
        ({"WORLD_SIZE": "2"}, "RANK is missing, though other variables of its launcher are there"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is missing"),
        (mpi(1, 4, 0, 2), "not numbered machine by machine .mpirun --map-by slot"),
        (slurm(SLURM_STEP_NUM_TASKS="8"), "contradict each other: 8 tasks on 4 nodes"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="two"), "'two', are not of the form"),
        (
            slurm(RANK="3", WORLD_SIZE="4"),
            "RANK=3 and WORLD_SIZE=4, but srun has started this process as number 5 of 7",
        ),
        ({**mpi(1, 2, 1, 2), "RANK": "0", "WORLD_SIZE": "2"}, "but mpirun has started this process as number 1 of 2"),
    ],
)
def test_variables_that_make_no_sense(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(env)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ({}, {"workers": "threads:2"}, r"workers='threads:2' \(from: keyword\), but a process that attaches is one"),
        ({}, {"workers": 2}, "workers=2, but nothing tells the processes of this run .* job=NAME"),
        ({}, {"nodes": 2}, "nodes=2, but nothing says of which node this process is: set ADAPM_NODE"),
        (torch(0, 2, 0, 2), {"workers": 4}, r"workers=4 \(from: keyword\), but RANK, WORLD_SIZE, ... says 2"),
        (torch(0, 2, 0, 2), {"nodes": 2, "node": 0, "rendezvous": "tcp://a:1"}, r"nodes=2 .*says 1: leave out nodes"),
        (mpi(0, 4, 0, 2), {}, "mpirun says nodes=2, but not where they meet: set MASTER_ADDR"),
    ],
)
def test_settings_that_do_not_fit(env: dict[str, str], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(env, **settings)
