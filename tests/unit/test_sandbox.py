"""Code that a model wrote is judged, and can do no harm."""

import socket
import sys
import time
from pathlib import Path

import pytest

from prunus.errors import RecipeError
from prunus.sandbox import passes


def _confines() -> bool:
    try:
        return passes("pass")
    except RecipeError:
        return False


CONFINES = sys.platform == "linux" and _confines()
confined_only = pytest.mark.skipif(not CONFINES, reason="this system lets no process be confined")
both = pytest.mark.parametrize("confined", [False, pytest.param(True, marks=confined_only)])


@both
def test_code_passes_when_it_ends_without_an_error(confined: bool) -> None:
    assert passes("assert sorted([2, 1]) == [1, 2]", confined=confined)
    assert not passes("assert 1 == 2", confined=confined)
    assert not passes("def f(:", confined=confined)
    assert not passes("import os; os._exit(99)", confined=confined)
    assert passes("print('as much as it likes ' * 1000)", confined=confined)


@both
def test_code_that_does_not_end_is_ended(confined: bool) -> None:
    start = time.perf_counter()
    assert not passes("import os, time\nfor _ in range(3):\n    os.fork()\ntime.sleep(60)", seconds=1.0, confined=confined)
    assert time.perf_counter() - start < 10


@both
def test_memory_and_surroundings_are_not_those_of_this_process(confined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "plum")
    assert passes("import os; assert 'A_SECRET' not in os.environ", confined=confined)
    assert not passes("x = bytearray(8 << 30)", confined=confined)
    assert not passes("open('here', 'w').write('a'); open('here').read(1) or 1 / 0", confined=confined)


@confined_only
def test_confined_code_changes_no_file_and_reaches_no_one(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    server = socket.create_server(("127.0.0.1", 0))
    try:
        for code in (f"import os; os.remove({str(victim)!r})", f"open({str(victim)!r}, 'w')",
                     f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=1)",
                     f"import os; os.kill({__import__('os').getpid()}, 0)"):
            assert not passes(code), code
    finally:
        server.close()
    assert victim.read_text() == "whole"


def test_a_system_that_does_not_confine_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.sandbox._CONFINE", "import os; os._exit(99)\n")
    with pytest.raises(RecipeError, match="does not let a process be confined"):
        passes("pass")
