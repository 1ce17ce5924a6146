"""How fast is the progressive search? SmolLM2's branches until a fifth of the block weights is gone, once as the search does it and
once as it is told (every branch that is left is looked at in every round, through all blocks), in the same process; and whether
both take the same branches.
"""

import math
from typing import Any

from _harness import Timer, arguments, model_and_tokenizer, table, write
from prunus import Budget, Calibration, describe
from prunus.search import search
from prunus.search.fitness import Bounded, Fitness
from prunus.search.space import Space
from prunus.search.strategies.progressive import Progressive

SPARSITY = 0.2


def main() -> None:
    options = arguments(__doc__ or "", dtype={"default": "bfloat16"})
    model, tokenizer = model_and_tokenizer(options.tiny, options.dtype)
    samples, length = (4, 32) if options.tiny else (6, 256)
    tokens = Calibration("self", samples=samples, length=length).tokens(tokenizer, model, 1)
    rows = [_row(model, tokens, lazy, options.tiny) for lazy in (True, False)]
    ours, plain = rows
    shown = table(["search", "looks", "block passes", "seconds", "of the plain one's"], [
        [row["name"], str(row["looks"]), f"{row['passes']:.0f}", f"{row['seconds']:.0f}", f"{row['seconds'] / plain['seconds']:.2f}"]
        for row in rows])
    print(shown)
    print("the same branches go" if ours["gone"] == plain["gone"] else f"other branches go: {ours['gone']}, {plain['gone']}")
    if not options.tiny:
        write("how_fast_is_the_progressive_search", f"attentions and MLPs by divergence per weight, {SPARSITY:.0%} of the block weights; "
              f"{samples} sequences of {length} tokens that the model wrote itself; {options.dtype}", rows,
              {"how_fast_is_the_progressive_search": shown})


def _row(model: Any, tokens: Any, lazy: bool, tiny: bool) -> dict[str, Any]:
    """What goes, and what finding it takes; plain also means that no hidden states are kept."""
    anatomy = describe(model)
    sites = anatomy.sites("sublayer")
    space = Space(sites, (0.0, 1.0), Budget(0.5 if tiny else 1 - SPARSITY))
    with Timer() as timer:
        fitness = Fitness(model, anatomy, space, None, tokens)
        if not lazy:
            fitness._states = Bounded(0)
        try:
            found = search(space, Progressive(lazy=lazy), fitness, space.nearest({site.name: 0.2 for site in sites}), math.inf)
        finally:
            fitness.close()
    answer = found.trials[-1].candidate
    return {"name": "progressive, as it is" if lazy else "as it is told", "looks": len(found.trials), "passes": fitness.blocks,
            "seconds": timer.wall, "gone": [site.name for site, level in zip(sites, answer, strict=True) if level]}


if __name__ == "__main__":
    main()
