"""prunus study: what it runs in a process of its own, what it prints, and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ..studies import calibration, table
from .conftest import Ran

Prunus = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore")


def written(folder: Path, **changes: Any) -> Path:
    """A study of two recipes as a file."""
    recipes = [{"grid": {"solver": ["magnitude", "wanda"]}, "calibration": calibration(folder)}]
    file = folder / "study.toml"
    file.write_text(tomli_w.dumps(table(folder, **{"seeds": [0], "recipes": recipes, "out": str(folder / "out"), **changes})))
    return file


def test_a_study_is_run_listed_and_printed(prunus: Prunus, tmp_path: Path) -> None:
    file = written(tmp_path)
    before = prunus("study", file, "--list")
    assert before.out.splitlines() == ["missing tiny, dense", "missing tiny, magnitude", "missing tiny, wanda, seed 0",
                                       "0 of 3 cells are there; no estimate before a cell of this kind is there."]
    assert not (tmp_path / "out").exists()
    ran = prunus("study", file)
    assert ran.code == 0
    assert "Cell 1 of 3: tiny, dense." in ran.err
    assert "tiny, wanda, seed 0: done in" in ran.err
    lines = ran.out.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith(" ") and "perplexity" in line)
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["tiny", "magnitude", "wanda"]
    assert "2 recipes with 1 seed on tiny, measured in the same way on 1 text." in lines
    assert "Note: One seed: how much another one would change is not known." in lines
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cells", "study.html", "study.json", "study.md"]
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    again = prunus("study", file, "--json")
    assert [model["name"] for model in json.loads(again.out)["models"]] == ["tiny"]
    assert again.err == ""
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()} == cells
    (tmp_path / "out" / "cells" / "tiny--wanda--seed-0.json").unlink()
    listed = prunus("study", file, "--dry-run").out.splitlines()
    assert listed[0] == "there   tiny, dense"
    assert listed[2].startswith("missing tiny, wanda, seed 0  about ")
    assert listed[3].startswith("2 of 3 cells are there; about ")
    found = json.loads((tmp_path / "out" / "cells" / "tiny--magnitude.json").read_text())["took"]
    assert found["cost"]["host_bytes"] > 2**20


def test_a_cell_whose_process_dies_is_told_and_tried_again(prunus: Prunus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text(textwrap.dedent(f"""
        import os
        import pathlib
        import signal
        from dataclasses import dataclass
        from tests.outside import Halve

        @dataclass(frozen=True)
        class Deadly(Halve):
            def solve(self, problem):
                if not pathlib.Path({str(tmp_path / "mended")!r}).exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().solve(problem)
    """))
    monkeypatch.syspath_prepend(tmp_path)
    recipes = [{"name": "deadly", "solver": "deadly:Deadly"}, {"name": "magnitude", "solver": "magnitude"}]
    file = written(tmp_path, recipes=recipes)
    ran = prunus("study", file, "--quiet")
    assert (ran.code, ran.out) == (1, "")
    line = "tiny, deadly: the process of the cell has died: it was killed (SIGKILL), as systems do when memory runs out"
    assert f"prunus: {line}" in ran.err.splitlines()
    assert sorted(path.name for path in (tmp_path / "out" / "cells").iterdir()) == [
        "tiny--deadly.json", "tiny--dense-model.json", "tiny--magnitude.json"]
    report = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(report["failed"]) == ["tiny, deadly"]
    assert report["models"][0]["cells"] == {"": 1, "deadly": 0, "magnitude": 1}
    assert "Failed cells" in (tmp_path / "out" / "study.html").read_text()
    assert prunus("study", file, "--list").out.splitlines()[1].startswith("failed  tiny, deadly")
    (tmp_path / "mended").touch()
    assert prunus("study", file, "--quiet").code == 0
    assert "Failed cells" not in (tmp_path / "out" / "study.html").read_text()


def there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def waiting(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A study whose second recipe waits until there is a file `go`; its process is in the file `pid`."""
    (folder / "slow.py").write_text(textwrap.dedent(f"""
        import os
        import pathlib
        import time
        from dataclasses import dataclass
        from tests.outside import Halve

        @dataclass(frozen=True)
        class Slow(Halve):
            def solve(self, problem):
                if not pathlib.Path({str(folder / "go")!r}).exists():
                    pathlib.Path({str(folder / "pid")!r}).write_text(str(os.getpid()))
                    time.sleep(300)
                return super().solve(problem)
    """))
    file = written(folder, recipes=[{"name": "magnitude", "solver": "magnitude"}, {"name": "slow", "solver": "slow:Slow"}])
    root = str(Path(__file__).parents[2])
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root, os.environ.get("PYTHONPATH", "")])}
    running = subprocess.Popen([sys.executable, "-m", "prunus", "study", str(file)], env=settings, text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a background job ignores it
    try:
        deadline = time.monotonic() + 240
        while not (folder / "pid").exists():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_the_worker_ends_where_the_one_that_asks_is_killed(tmp_path: Path) -> None:
    with waiting(tmp_path) as running:
        worker = int((tmp_path / "pid").read_text())
        os.kill(running.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while there(worker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not there(worker)


def test_ctrl_c_ends_the_worker_too_keeps_what_is_done_and_the_same_command_goes_on(
        prunus: Prunus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting(tmp_path) as running:
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Interrupted: 2 of 3 cells are kept in" in " ".join(err.split())
    assert not there(int((tmp_path / "pid").read_text()))
    assert sorted(path.name for path in (tmp_path / "out" / "cells").iterdir()) == ["tiny--dense-model.json", "tiny--magnitude.json"]
    assert "1 cell is missing" in (tmp_path / "out" / "study.md").read_text()
    (tmp_path / "go").touch()
    monkeypatch.syspath_prepend(tmp_path)
    done = prunus("study", tmp_path / "study.toml", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize(("changes", "flags", "message"), [
    ({"metrics": {"corpus": ["builtin"]}}, [], "study.metrics.corpus: unknown key. Did you mean 'corpora'?"),
    ({"out": ""}, [], "study.out: no folder: name one in the file, or with --out."),
    ({"models": [{"source": "nowhere/at/all.gguf"}]}, [], "model 'nowhere/at/all.gguf'"),
])
def test_bad_studies_are_told_in_one_line(prunus: Prunus, tmp_path: Path, changes: dict[str, Any], flags: list[Any], message: str) -> None:
    ran = prunus("study", written(tmp_path, **changes), *flags, "--quiet")
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_model_that_cannot_be_pruned_is_told_before_any_cell(prunus: Prunus, tmp_path: Path) -> None:
    from .conftest import saved

    ran = prunus("study", written(tmp_path, models=[{"source": str(saved("bert", tmp_path / "bert"))}]), "--quiet")
    assert ran.code == 2
    assert "does not predict the next token" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_results_of_another_study_are_refused_in_one_line(prunus: Prunus, tmp_path: Path) -> None:
    assert prunus("study", written(tmp_path), "--quiet").code == 0
    other = [{"grid": {"solver": ["magnitude", "wanda"]}, "sparsity": 0.6, "calibration": calibration(tmp_path)}]
    for flags in ([], ["--list"]):
        ran = prunus("study", written(tmp_path, recipes=other), "--quiet", *flags)
        assert ran.code == 2
        assert "tiny--magnitude.json: is of another study: recipe.stage[0].budget.limit is 0.5 there and 0.4 here. Choose" in ran.err
        assert len(ran.err.strip().splitlines()) == 1
