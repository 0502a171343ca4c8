"""Progress in a pipe: a line now and then, with how far the work is; nothing where it is quick."""

from __future__ import annotations

import itertools

import pytest

from trimtab import progress


@pytest.mark.parametrize(("every", "lines"), [(0.0, 3), (60.0, 0)])
def test_a_pipe_gets_a_line_now_and_then(every, lines, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", every)
    assert list(progress.tracked([1, 2, 3, 4], "counting")) == [1, 2, 3, 4]
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == lines
    if lines:
        assert err.splitlines()[0].startswith("trimtab: counting: 1 of 4, about ")
    with progress.progress("", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_many_short_works_of_a_verb_are_long_work(monkeypatch, capsys):
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))

    def works() -> int:
        for _ in range(6):
            list(progress.tracked([1, 2], "stepping"))
        return len(capsys.readouterr().err.splitlines())

    assert works() == 0
    with progress.one_pace():
        assert works() >= 3
    assert works() == 0
