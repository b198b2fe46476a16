"""Items that crash, hang or fail beside items that do not."""

from __future__ import annotations

import os
import time

from parhelion.tuning.workers import map_in_workers

LIMIT_S = 3.0


def work(item: int) -> tuple[int, str]:
    if item == 2:
        os._exit(7)
    if item == 4:
        time.sleep(600)
    return item, os.environ.get("PREPARED", "no")


def prepare() -> None:
    os.environ["PREPARED"] = str(os.getpid())


def failed(item: int, reason: str) -> tuple[int, str]:
    return item, reason


def results(groups: list[list[int]], jobs: int) -> dict[int, str]:
    found = list(map_in_workers(work, groups, failed, jobs=jobs, limit_s=LIMIT_S, prepare=prepare))
    assert len(found) == sum(map(len, groups))
    return dict(found)


def test_a_crash_or_a_hang_costs_its_own_item_and_no_other():
    found = results([[1, 2, 3], [4, 5]], jobs=2)
    assert found[2] == "the compiler crashed (exit status 7)"
    assert found[4] == "took longer than 3 s"
    assert all(found[item].isdigit() for item in (1, 3, 5))


def test_a_group_stays_in_one_process_and_more_groups_than_processes_are_fine():
    found = results([[1, 3], [5], [], [7, 9]], jobs=1)
    assert sorted(found) == [1, 3, 5, 7, 9]
    assert len(set(found.values())) == 1


def test_nothing_to_do_starts_nothing():
    assert results([], jobs=2) == {}
