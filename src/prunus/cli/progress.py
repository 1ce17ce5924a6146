"""Progress on the terminal: one line that moves, with figures of the last site and the time that is left."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["Screen", "clock", "compared"]

_UNKNOWN = "estimating the time left"


class Screen:
    """Shows the progress of one run on standard error; prints nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(Text(""), console=self._console, refresh_per_second=4, transient=True)
        self._phases: dict[str, tuple[float, int | float]] = {}  # when each began, and how far it was last: two may take turns
        self._shown = 0.0

    def __enter__(self) -> "Screen":
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._quiet:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(line)

    def warn(self, line: str) -> None:
        """A line that stays even when quiet."""
        self._console.print(line)

    def watch(self, progress: Any) -> None:
        """Show how far the run has come."""
        if self._quiet:
            return
        start, done = self._phases.get(progress.phase, (time.perf_counter(), 0))
        start = start if progress.done >= done else time.perf_counter()
        self._phases[progress.phase] = start, progress.done
        line = _line(progress, time.perf_counter() - start)
        self._live.update(Text(line))
        if not self._console.is_terminal and (progress.done == progress.total or time.perf_counter() - self._shown > 10):
            self._shown = time.perf_counter()
            self._console.print(line)

    def working(self, phase: str, done: int | float, total: int | float) -> None:
        """Show how far a repair, or a measurement, has come."""
        from ..pipeline import Progress

        self.watch(Progress(phase, done, total))

    def summary(self, report: Any, out: Path) -> None:
        """What was reached, and where it is."""
        if self._quiet:
            return
        brackets = "95 %; of speed, all rounds" if any(item.kind == "rounds" for item in report.after) else "95 %"
        heads = {"ratio": "pruned / dense", "difference": "pruned - dense"}
        words = dict.fromkeys(after.beside(before)[0] for before, after in zip(report.before, report.after, strict=True))
        head = f"{' or '.join(heads[word] for word in words)} [{brackets}]"
        table = Table("", "dense", "pruned", head, "better", box=None, pad_edge=False)
        for before, after in zip(report.before, report.after, strict=True):
            table.add_row(before.label, *compared(before, after), before.better)
        self._console.print(f"Sparsity {report.sparsity:.2%} of all block matrices, counted. Pruning took "
                            f"{report.seconds['pruning']:.0f} s, of which solving {report.seconds.get('solving', 0.0):.0f} s.")
        for line in report.gains:
            self._console.print(line)
        if report.before:
            self._console.print(table)
        for prompt, before, after in zip(report.prompts, report.answers_before, report.answers_after, strict=False):
            self._console.print(Text(f"\n{prompt} …", style="bold"))
            self._console.print(Text(f"  dense:  {' '.join(before.split())}"))
            self._console.print(Text(f"  pruned: {' '.join(after.split())}"))
        for note in report.notes:
            self._console.print(f"Note: {note}")
        for flag in report.flags:
            self._console.print(Text(flag, style="bold red"))
        how = " with trust_remote_code=True" if (out / "modeling_pruned.py").is_file() else ""
        self._console.print(f"\nSaved to {out} (transformers loads it{how}); the figures are in {out / 'README.md'}.")

    def exploring(self, progress: Any) -> bool:
        """How far the search for a front is, with the front so far."""
        if self._quiet:
            return True
        found = progress.found
        done, total = len(found.trials), progress.evaluations
        start, known = self._phases.setdefault("searching", (time.perf_counter(), done))  # what was known at first took no time
        left = f"about {clock((time.perf_counter() - start) * (total - done) / (done - known))} left" if done > known else _UNKNOWN
        share = done / max(total, 1)
        line = f"{share:4.0%}  {left}  {done} of {total} seen, {len(found.front)} on the front, volume {progress.hypervolume:.3f}"
        table = Table(*found.objectives, box=None, pad_edge=False)
        for trial in found.front[:: max(1, len(found.front) // 12)]:
            table.add_row(*(f"{value:.4g}" for value in trial.values))
        self._live.update(Group(Text(line), table))
        if not self._console.is_terminal and (done == total or time.perf_counter() - self._shown > 10):
            self._shown = time.perf_counter()
            self._console.print(line)
        return True

    def training(self, progress: Any) -> None:
        """How far a training is."""
        if self._quiet:
            return
        line = (f"{progress.done / progress.total:4.0%}  about {clock(progress.remaining)} left  step {progress.done} of "
                f"{progress.total}, epoch {progress.epoch + 1}, loss {progress.loss:.4f}")
        self._live.update(Text(line))
        if not self._console.is_terminal and (progress.done == progress.total or time.perf_counter() - self._shown > 10):
            self._shown = time.perf_counter()
            self._console.print(line)

    def front(self, found: Any, out: Path) -> None:
        """The points of a front, in the search and on what it did not see."""
        if self._quiet:
            return
        from ..search.objectives import COSTS

        names = found.plan.objectives
        table = Table("", *names, *(f"{name}, held out" for name in names), "", box=None, pad_edge=False)
        for point in (*found.points, found.dense):
            table.add_row("dense" if point is found.dense else "", *(f"{value:.4g}" for value in (*point.values, *point.held_out)),
                          "dominated there" if point.dominated and point is not found.dense else "")
        self._console.print(table)
        if found.baselines:
            volumes = sorted(found.volumes.items(), key=lambda item: -item[1])
            self._console.print("Hypervolume of held-out quantiles: " + ", ".join(f"{name} {volume:.3f}" for name, volume in volumes) + ".")
        failed = f", {found.failed} of them without values (why: {out / 'trials.jsonl'})" if found.failed else ""
        self._console.print(f"{found.looked} sub-networks{failed}; {len(found.points)} on the front.")
        self._console.print("Seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.seconds.items()) + ".")
        if found.interrupted:
            self._console.print("Interrupted: the same command with --resume goes on.")
        limited = next((name for name in names if name in COSTS), names[-1])
        self._console.print(f"Saved to {out}. To take a point: prunus extract {out} --pick '{limited}<=0.5' --out small/")

    def point(self, found: Any, point: Any) -> None:
        """The point that is taken, beside the dense model."""
        pairs = zip(found.plan.objectives, point.values, point.held_out, found.dense.held_out, strict=True)
        self.say("; ".join(f"{name} {value:.4g}, held out {held:.4g} (dense {dense:.4g})" for name, value, held, dense in pairs))

    def shares(self, found: Any, out: Path) -> None:
        """How much each kind of site gives, what a search found, and where it is."""
        if self._quiet:
            return
        from ..figures import place

        kinds: dict[str, list[float]] = {}
        for site, share in found.allocation.items():
            kinds.setdefault(place(site)[1], []).append(share)
        table = Table("kind of site", "sites", "mean", "least", "most", box=None, pad_edge=False)
        for kind, values in kinds.items():
            table.add_row(kind, str(len(values)), f"{sum(values) / len(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}")
        self._console.print(table)
        if found.search:
            search = found.search
            self._console.print(f"{search.strategy}: {search.objective} {search.first:.4f} -> {search.best:.4f} {search.unit} on "
                                f"the search text, {search.held_out_first:.4f} -> {search.held_out_best:.4f} on held-out text, "
                                f"in {search.questions} questions.")
            for remark in search.remarks:
                self._console.print(f"Note: {remark}")
        self._console.print(f"\nSaved to {out}. To prune with it: --allocation file,path={out / 'allocation.json'}")


def compared(before: Any, after: Any) -> tuple[str, str, str]:
    """Two measurements as a table shows them: the first, the second, and the second beside the first."""
    word, value, (low, high) = after.beside(before)
    digits, sign = (4, "+") if word == "difference" else (2, "")
    return (f"{before.value:.{digits}f}", f"{after.value:.{digits}f}",
            f"{value:{sign}.{max(digits, 3)}f} [{low:{sign}.{max(digits, 3)}f}, {high:{sign}.{max(digits, 3)}f}]")


def _line(progress: Any, seconds: float) -> str:
    share = progress.done / max(progress.total, 1)
    left = f"about {clock(seconds * (1 - share) / share)} left" if share > 0.01 else _UNKNOWN
    if progress.phase.endswith("model"):
        return f"Measuring the {progress.phase}: {progress.done} of {progress.total}"
    if progress.record is None:
        return f"{share:4.0%}  {left}  {progress.phase}: {progress.done:g} of {progress.total:g}"
    error = "" if progress.record.error is None else f", error {progress.record.error:.4f}"
    return f"{share:4.0%}  {left}  {progress.record.site}: sparsity {progress.record.reached:.3f}{error}"


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
