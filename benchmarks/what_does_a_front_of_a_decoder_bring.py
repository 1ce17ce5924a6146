"""What does a front of a decoder bring? SmolLM2: a search over key/value groups and MLP channels of every block by divergence, weights
and measured latency, in which what reads channels is refitted to those that stay; how many of its points another beats on held-out text;
and points of it, repaired and distilled, beside the best that one granularity gave at as many weights (which_channels_go).

Rows are kept in build/, so that an interrupted benchmark goes on where it stopped; the search's own trials are too.
"""

import tempfile
from pathlib import Path
from typing import Any

from _harness import (
    GO_ON,
    ROOT,
    WRITE,
    arguments,
    environment,
    keep_row,
    kept_rows,
    model_and_tokenizer,
    newest_rows,
    perplexities,
    table,
    write,
)
from prunus import Calibration
from prunus.front import FILE, Front, FrontSearch
from prunus.frontier import find_front, genome_of, repair
from prunus.recovery import Recovery
from prunus.recovery.distill import Distill
from prunus.recovery.patch import Patch
from prunus.search.searchers.exchange import Exchange
from prunus.search.spaces.medium import Medium

QUESTION, WIDTH = "what_does_a_front_of_a_decoder_bring", "which_channels_go"
SPACE = Medium(steps=48)  # 32 of SmolLM2's 1536 MLP channels a step
RECOVERIES: dict[str, Recovery] = {"repaired": Patch(), "distilled": Distill()}
KEPT = ROOT / "build" / QUESTION


def main() -> None:
    options = arguments(__doc__ or "", go_on=GO_ON, write=WRITE, shares={"nargs": "*", "type": float, "default": [0.8, 0.7]},
                        recoveries={"nargs": "*", "default": list(RECOVERIES)})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if options.tiny else KEPT
        rows = kept_rows(home / "rows.jsonl", QUESTION if options.go_on else "")
        if not options.write:
            front = _front(options.tiny, home)
            for key in ((share, name) for share in options.shares for name in options.recoveries):
                if not any((row["share"], row["recovery"]) == key for row in rows):
                    rows.append(keep_row(home / "rows.jsonl", _row(options.tiny, front, *key)))
                    print(rows[-1], flush=True)
        front = Front.load(home)
    shown = _shown(rows)
    print(shown)
    if not options.tiny:
        dominated = sum(point.dominated for point in front.points)
        write(QUESTION, f"{'; '.join(rows[0]['protocols'])}; search: {front.plan}; {front.protocols}; {len(front.points)} points, of which "
              f"another beats {dominated} on held-out text, and says so", rows, {QUESTION: shown},
              points=[{"values": point.values, "held_out": point.held_out, "dominated": point.dominated} for point in front.points],
              seconds=dict(front.seconds))


def _text(tiny: bool, samples: int) -> Calibration:
    return Calibration("builtin", samples=4, length=64) if tiny else Calibration("c4", samples=samples, length=512)


def _front(tiny: bool, folder: Path) -> Front:
    """Search, or what was found before."""
    if not (folder / FILE).exists():
        model, tokenizer = model_and_tokenizer(tiny, "float32")  # seconds of bfloat16 are those of a processor that has it
        text = Calibration("self", samples=8, length=32) if tiny else Calibration("wikitext2", samples=16, length=256, written=16)
        plan = FrontSearch(SPACE, ("divergence", "params", "latency"), Exchange(least=0.68, most=0.84), 14 if tiny else 80, "taylor",
                           refit=True, text=text, calibration=_text(tiny, 64))
        folder.mkdir(parents=True, exist_ok=True)
        found = find_front(model, tokenizer, plan, folder=folder, source="SmolLM2")
        (folder / FILE).write_text(found.to_json())
    return Front.load(folder)


def _row(tiny: bool, front: Front, share: float, recovery: str) -> dict[str, Any]:
    """A point, repaired and extracted."""
    model, tokenizer = model_and_tokenizer(tiny, "bfloat16")
    point, genome = front.pick([f"params<={share}"]), genome_of(model, front.plan.space, front.orders)
    repair(model, tokenizer, genome.units, genome.kept(point.candidate), RECOVERIES[recovery], _text(tiny, 192))
    genome.extract(model, point.candidate)
    return {"share": share, "recovery": recovery, "commit": environment()["commit"], "values": point.values,
            **perplexities(model, tokenizer, tiny)}


def _shown(rows: list[dict[str, Any]]) -> str:
    """Beside what was measured of channels alone at as many weights."""
    beside = {(row["name"], row["sparsity"]): row["perplexity"] for row in newest_rows(WIDTH)}
    lines = []
    for row in sorted(rows, key=lambda row: (-row["share"], row["recovery"])):
        width = beside.get((f"Taylor, refitted, ranking, {row['recovery']}, on more text", round(1 - row["share"], 6)), ())
        lines.append([f"{row['share']:.0%}", row["recovery"], *(f"{value:.3f}" for value in row["values"]),
                      *(f"{value:.2f}" for value in row["perplexity"]), *(f"{value:.2f}" for value in width)])
    return table(["at most", "the point is", "divergence in the search", "weights", "latency", "WikiText-2", "C4",
                  "channels alone, WikiText-2", "channels alone, C4"], lines)


if __name__ == "__main__":
    main()
