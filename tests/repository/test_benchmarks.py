"""What `make bench` times of trimtab itself, on a tiny model: every job runs, and two ways of one task agree."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
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
    ("task", "ways"),
    [
        ("capture", ("plain", "trimtab", "one at a time")),
        ("unshared", ("plain", "trimtab")),
        ("choice", ("trimtab", "trimtab sweep of 20")),
        ("generation", ("plain", "trimtab generated", "trimtab all")),
        ("answers", ("batches of 16", "trimtab")),
        ("report", ("trimtab",)),
    ],
)
def test_trimtab_s_jobs_run_and_say_the_same(bench, task, ways):
    speed, peers, folder = bench
    written = peers.Written(folder)
    found = [peers.values(peers.JOBS[task][way](written)()) for way in ways]
    given = [one for one in found if one is not None]
    for one in given:
        assert np.abs(one - given[0]).max() <= speed.TOLERANCE.get(task, 0.0) * max(1.0, np.abs(given[0]).max())
