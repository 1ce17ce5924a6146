"""What sub-networks are worth: on a task, or on text, to a search and on what the search does not see."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .alone import Alone, of_text
from .calibration.placement import Placement, together
from .calibration.tasks import Encoded, Labelled, encoded
from .distillation import task_loss
from .environment import available_bytes
from .front import FrontSearch
from .predictions import answers, what_is_said
from .scores import scored
from .search.channels import ChannelSpace
from .search.fitness import Fitness
from .search.objectives import QUALITIES, Quality
from .search.plan import apart
from .search.space import Query
from .search.subnetwork import Kept, Units
from .search.thin import Levels
from .traits import model_bytes

__all__ = ["on_task", "on_text"]

_OTHER_SEED = 1  # of the search text, which is drawn as calibration text is

Parts = tuple[Quality, Quality, tuple[str, ...], int]  # what is searched on, and what is not; protocols; tokens of a sequence
Network = Callable[[Kept, Levels, int], AbstractContextManager[Any]]  # the model that a sub-network is, for as long as it is looked at


def on_task(model: Any, tokenizer: Any, read: Labelled, units: Units, alone: Alone | None) -> Parts:
    """The validation split, and the test split."""
    network = _network(model, units, alone)
    parts = [encoded(read, split, model, tokenizer) for split in ("validation", "test")]

    def quality(examples: Encoded) -> Quality:
        dense = answers(model, examples)

        def of(kept: Kept, levels: Levels, resource: int) -> Mapping[str, float]:
            with network(kept, levels, resource) as found:
                said = answers(found, examples)
            value = scored(examples.metric, what_is_said(said), examples.targets, examples.classes)
            return {"error": 1 - value, "loss": float(task_loss(said, examples.targets)), "divergence": _divergence(dense, said)}

        return of

    seen, unseen = map(quality, parts)
    return seen, unseen, tuple(part.protocol for part in parts), max(map(len, parts[0].tokens))


def on_text(model: Any, tokenizer: Any, plan: FrontSearch, units: Units, stack: ExitStack, alone: Alone | None) -> Parts:
    """Three quarters of the search text, and the fourth."""
    tokens = plan.text.tokens(tokenizer, model, plan.seed + _OTHER_SEED, "text")
    space, store = ChannelSpace(units.sites, (), ()), units.thin.store if units.thin else None
    objectives = {"divergence": "divergence", "loss": "perplexity"}  # as fitness calls them

    def quality(held_out: bool) -> Quality:
        rows = apart(len(tokens), held_out)
        if alone:
            valued = of_text(model, tokens[rows], plan.objectives)
            return lambda kept, levels, resource: valued(alone.network(kept, resource))
        services: dict[str, Fitness] = {}
        for name in set(plan.objectives) & set(QUALITIES):
            services[name] = Fitness(model, units.anatomy, space, store, tokens[rows], objective=objectives[name],  # type: ignore[arg-type]
                                     placement=Placement.of(model), batch=together(tokens.shape[1]), fits=units.fits,
                                     memory=min(available_bytes() // 16, model_bytes(model) // 4))
            stack.callback(services[name].close)

        def of(kept: Kept, levels: Levels, resource: int) -> Mapping[str, float]:
            goes = torch.cat([~kept[site.name] for site in units.sites]).double().numpy()
            candidate = space.candidate(goes, [levels.get(site.name, 0) for site in units.sites])
            return {name: service([Query(candidate)])[0].value for name, service in services.items()}

        return of

    text = plan.text.text()
    told = f"{plan.text.corpus}, {'written by the model' if text is None else f'text sha256 {text.digest}'}"
    if text is not None and (own := plan.text.writes(model)):
        told += f" and {own} sequences of {len(tokens)} written by the model"
    told += f", sequences of {tokens.shape[1]}"
    count = len(apart(len(tokens), held_out=True))
    return quality(False), quality(True), (f"{told}, {len(tokens) - count}", f"{told}, {count} others"), tokens.shape[1]


def _network(model: Any, units: Units, alone: Alone | None) -> Network:
    """A sub-network as a model: the dense one that wears it, or one that was trained by itself."""
    @contextmanager
    def worn(kept: Kept, levels: Levels, resource: int) -> Iterator[Any]:
        with units.worn(model, kept, levels):
            yield model

    return (lambda kept, levels, resource: nullcontext(alone.network(kept, resource))) if alone else worn


def _divergence(dense: Tensor, said: Tensor) -> float:
    """KL(dense model || sub-network) in nats per example; of numbers the mean squared difference."""
    if dense.shape[1] == 1:
        return float((dense - said).square().mean())
    first, second = dense.double().log_softmax(1), said.double().log_softmax(1)
    return float((first.exp() * (first - second)).sum(1).mean())
