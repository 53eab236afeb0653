"""The current worker: which thread has one, and until when."""

import asyncio
import threading

import pytest

import adapm
from adapm.current import being
from adapm.errors import NoWorker

TABLES = [adapm.Table("t", rows=1, dim=1)]


def in_a_function(worker):
    seen = [adapm.current_worker() is worker]
    elsewhere = threading.Thread(target=lambda: seen.append(has_none()))
    elsewhere.start()
    elsewhere.join()
    return seen


async def in_a_coroutine(worker):
    own, task = adapm.current_worker(), asyncio.create_task(in_a_task())
    return [own is worker, await task is worker, await asyncio.to_thread(has_none)]


async def in_a_task():
    return adapm.current_worker()


def has_none():
    try:
        adapm.current_worker()
    except NoWorker:
        return True
    return False


def test_a_task_is_in_the_thread_of_its_worker():
    assert adapm.run(in_a_function, TABLES, workers="threads:2") == [[True, True]] * 2
    assert adapm.run(in_a_coroutine, TABLES, workers="threads:2") == [[True, True, True]] * 2
    assert has_none()


def test_outside_it_says_where_there_is_one():
    with pytest.raises(NoWorker, match=r"no worker of a run: call this from the function that adapm.run\(fn, tables\)"):
        adapm.current_worker()


def test_what_was_before_comes_back():
    with being("outer"):
        with pytest.raises(ZeroDivisionError), being("inner"):
            assert adapm.current_worker() == "inner"
            raise ZeroDivisionError
        assert adapm.current_worker() == "outer"
    assert has_none()
