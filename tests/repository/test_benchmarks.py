"""What `make bench` times of trimtab itself, on a tiny model: every job runs, and ways that give something agree."""

from __future__ import annotations

from argparse import Namespace

import pytest

from tests.repository.published_records import PACKAGE, program


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(PACKAGE.parent / "benchmarks"))
        speed, peers = program("speed"), program("speed_peers")
        folder = tmp_path_factory.mktemp("bench")
        speed.write_world(folder, Namespace(tiny=True, truthfulqa=None))
        yield speed, peers, folder


@pytest.mark.parametrize(
    ("task", "ways", "n_given"),
    [
        ("capture", ("plain", "trimtab", "one at a time"), 2),
        ("unshared", ("plain", "trimtab"), 1),
        ("choice", ("trimtab", "trimtab sweep of 20"), 2),
        ("generation", ("plain", "trimtab generated", "trimtab all"), 0),
        ("answers", ("batches of 16", "trimtab"), 2),
        ("report", ("trimtab",), 0),
    ],
)
def test_trimtab_s_jobs_run_and_say_the_same(bench, task, ways, n_given):
    speed, peers, folder = bench
    written = peers.Written(folder)
    found = [peers.values(peers.JOBS[task][way](written)()) for way in ways]
    given = [one for one in found if one is not None]
    assert len(given) == n_given
    for one in given:
        assert speed.difference(one, given[0]) <= speed.allowed(task, given[0])
    assert task != "report" or (folder / "report").exists()
