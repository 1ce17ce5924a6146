"""Sub-networks that need no search: what a search for a front is compared with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..calibration.blocks import Enough, evaluating, hidden_of, replaced
from ..silence import gated
from ..sites import ChannelSite, SublayerSite
from ..traits import module_layout
from .subnetwork import Kept, Units

__all__ = ["BASELINES", "Gradients", "factors", "fewest_heads", "first_layers", "least", "rescaled", "retraining_free"]

BASELINES = ("layerdrop", "heads", "rfp")  # and every criterion: what it finds least of, of the channels of all branches, goes

Gradients = Mapping[str, Float[Tensor, "losses channels"]]  # of losses by a factor on each channel, by site
Scales = Mapping[str, Float[Tensor, "channels"]]  # by site: the factor of every channel, 0 where it goes

_WIDEST = 10.0  # a factor beyond this, either way, says that the system was singular


def first_layers(units: Units) -> list[Kept]:
    """Layer dropping (Sajjad et al. 2023): the last blocks go, one more in every sub-network."""
    depth = len(units.blocks)
    return [{site.name: units.first(site, site.count if place < layers else 0)
             for place, sites in enumerate(units.blocks) for site in sites} for layers in range(1, depth + 1)]


def fewest_heads(units: Units, importance: Mapping[str, Tensor], steps: int = 10) -> list[Kept]:
    """Head pruning (Michel et al. 2019): the heads of all blocks compete, by |dL/dm|, and the least go; MLPs stay. Of steps + 1
    shares, from all heads to one."""
    heads, rest = _ranked(units, importance)
    counts = sorted({max(1, round(len(heads) * step / steps)) for step in range(steps + 1)}, reverse=True)
    return [_with(units, [*heads[:count], *rest]) for count in counts]


def least(units: Units, importance: Mapping[str, Tensor], share: float) -> Kept:
    """The channels of all branches compete by importance per weight, and the least go until `share` of the weights is left; but where
    some attention must stay, the most important head does."""
    heads, rest = _ranked(units, importance)
    needed = _needed(units)
    order = sorted([*heads[needed:], *rest], key=lambda entry: (entry[0] / entry[1], *entry[2:]))
    surplus, gone = (1 - share) * units.size, 0
    while surplus > 0 and gone < len(order):
        surplus -= order[gone][1]
        gone += 1
    return _with(units, [*heads[:needed], *order[gone:]])


def retraining_free(units: Units, gradients: Gradients, share: float) -> Kept:
    """The mask of Kwon et al. 2022, sections 4.1 and 4.2, at a share of the weights.

    Importance is the diagonal of the Fisher information, sum_b g_b^2. For every number of heads the best ones are taken, and the best
    MLP channels for what is left; the number with the most importance in all wins. Then, in every branch, channels are exchanged as long as
    |sum of the gradients of what goes|^2 falls, with as many channels as before.
    """
    importance = {name: rows.double().square().sum(0) for name, rows in gradients.items()}
    heads, rest = _ranked(units, importance)
    budget = share * units.size
    best, chosen = -1.0, (0, 0)
    for count in range(_needed(units), len(heads) + 1):
        left = budget - sum(cost for _, cost, _, _ in heads[:count])
        if left < 0:
            break
        more = _affordable(rest, left)
        gained = sum(value for value, *_ in heads[:count]) + sum(value for value, *_ in rest[:more])
        if gained > best:
            best, chosen = gained, (count, more)
    kept = _with(units, [*heads[: chosen[0]], *rest[: chosen[1]]])
    return {site.name: _exchanged(kept[site.name], gradients[site.name]) for site in units.sites}


def _exchanged(kept: Tensor, gradients: Float[Tensor, "losses channels"]) -> Tensor:
    """The same number of channels, with less |sum of the gradients of what goes|^2, over losses: those that go are taken back, the most
    promising first, each for the best of those that stay, as long as that helps."""
    kept = kept.clone()
    together = gradients.double().T @ gradients.double()
    own = together.diagonal()
    pull = together @ (~kept).double()
    limit = int((~kept).sum()) if kept.any() else 0
    for _ in range(limit):
        goes, stays = (~kept).nonzero().flatten(), kept.nonzero().flatten()
        back = (own - 2 * pull)[goes]
        for place in back.argsort().tolist():
            gain = back[place] + (own + 2 * pull)[stays] - 2 * together[goes[place]][stays]
            best = int(gain.argmin())
            if float(gain[best]) < -1e-12 * float(own.sum()):
                break
        else:
            break
        one, other = goes[place], stays[best]
        kept[one], kept[other] = True, False
        pull += together[other] - together[one]
    return kept


@torch.no_grad()
def rescaled(model: Any, units: Units, kept: Kept, teacher: Kept, batches: Sequence[Callable[[], Any]]) -> Scales:
    """Kwon et al. 2022, section 4.3: branch by branch, the factors with which the channels that are left give most nearly what is behind
    the branch's residual sum in the model masked by `teacher`; min |A d - r|^2 + |d|^2 with factors 1 + d, as LSMR with damping 1 finds
    it. Where one lies beyond 10, or the teacher has no such branch, all factors of the branch stay 1.

    Departs from the authors' code, which looks at the class token alone behind the last MLP, scales nothing in the first attention, and
    ends with the first branch that has a factor beyond 10. `batches` run the model, on the same examples.
    """
    scales = {name: mask.float() for name, mask in kept.items()}
    blocks = [model.get_submodule(block.name) for block in units.anatomy.blocks]
    with evaluating(model):
        aims = [_sums(model, units, teacher, batch) for batch in batches]
        behind: list[Any] = [None] * len(batches)  # what the blocks that are done with give, by batch
        for depth, sites in enumerate(units.blocks):
            ahead = [partial(_passing, blocks[:depth], given, batch) for given, batch in zip(behind, batches, strict=True)]
            for site in sites:
                if kept[site.name].any() and all(site.name in aim for aim in aims):
                    with units.masked(model, kept), gated(model, factors(units, scales)):
                        change = _change(model, units, site, kept[site.name], [aim[site.name] for aim in aims], ahead)
                    if float((1 + change).abs().max()) <= _WIDEST:
                        scales[site.name] = ((1 + change) * kept[site.name]).float()
            if depth + 1 < len(blocks):
                with units.masked(model, kept), gated(model, factors(units, scales)):
                    behind = [_given(blocks[depth], batch) for batch in ahead]
    return scales


def _change(model: Any, units: Units, site: ChannelSite, kept: Tensor, aims: Sequence[Tensor],
            batches: Sequence[Callable[[], Any]]) -> Float[Tensor, "channels"]:
    """What is to be added to the factors of a branch. `aims` are what is behind it in the teacher."""
    consumer: Any = model.get_submodule(site.consumer)
    columns = kept.repeat_interleave(site.width)
    mine = module_layout(consumer, consumer.weight).cpu().double()[:, columns]
    gram, cross = mine.new_zeros(mine.shape[1], mine.shape[1]), torch.zeros_like(mine)
    for batch, aim in zip(batches, aims, strict=True):
        read, behind = (value.float().flatten(0, -2) for value in _through(model, units, site, batch))
        read = read[:, columns.to(read.device)]
        gram += (read.T @ read).cpu()
        cross += ((aim.to(behind) - behind).T @ read).cpu()
    shape = (int(kept.sum()), site.width)
    parts = ((mine.T @ mine) * gram).view(*shape, *shape).sum((1, 3))
    wanted = (mine * cross).sum(0).view(shape).sum(1)
    change = torch.zeros(site.count, dtype=torch.float64)
    change[kept] = torch.linalg.solve(parts + torch.eye(shape[0], dtype=torch.float64), wanted)
    return change


def _passing(blocks: Sequence[nn.Module], given: Any, batch: Callable[[], Any]) -> None:
    """Run a batch as if `blocks`, which come first, had given this."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(block, lambda *_, **__: given))
        batch()


def _sums(model: Any, units: Units, kept: Kept, batch: Callable[[], Any]) -> dict[str, Float[Tensor, "tokens width"]]:
    """What is behind the residual sums of a sub-network, by site, in a batch; of branches that are there."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: Tensor, behind: Tensor) -> None:
        found[name] = behind.flatten(0, -2)

    with units.masked(model, kept), ExitStack() as stack:
        for site in units.sites:
            if kept[site.name].any():
                _listen(*_places(model, units, site), partial(keep, site.name), stack)
        batch()
    return found


def _through(model: Any, units: Units, site: ChannelSite, batch: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """What the consumer of a branch reads in a batch, padding too, and what is behind the branch; what comes after that is not run."""
    found: list[tuple[Tensor, Tensor]] = []

    def leave(read: Tensor, behind: Tensor) -> None:
        found.append((read, behind))
        raise Enough

    with ExitStack() as stack, suppress(Enough):
        _listen(*_places(model, units, site), leave, stack)
        batch()
    return found[0]


def _places(model: Any, units: Units, site: ChannelSite) -> tuple[nn.Module, nn.Module]:
    """A branch's block and its consumer."""
    return model.get_submodule(units.anatomy.blocks[site.block].name), model.get_submodule(site.consumer)


def _listen(block: nn.Module, consumer: nn.Module, tell: Callable[[Tensor, Tensor], None], stack: ExitStack) -> None:
    """Tell what a branch's consumer reads, and what is behind the branch's residual sum: what the next norm of the block reads, if that is
    not what the block is given, or what the block gives. Where a norm stands before the sum it is what the consumer gives."""
    entry: list[Tensor] = []
    seen: list[Tensor] = []

    def enter(_: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        entry[:] = [given[0] if given else keywords["hidden_states"]]

    def norm(_: nn.Module, given: tuple[Any, ...]) -> None:
        if seen and given[0].data_ptr() != entry[0].data_ptr():
            tell(seen.pop(), given[0])

    def leave(_: nn.Module, __: tuple[Any, ...], gives: Any) -> None:
        if seen:
            tell(seen.pop(), hidden_of(gives))

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(consumer.register_forward_hook(lambda _, given, __: seen.append(given[0])).remove)
    for module in block.modules():
        if "Norm" in type(module).__name__:
            stack.callback(module.register_forward_pre_hook(norm).remove)
    stack.callback(block.register_forward_hook(leave).remove)


def _given(block: nn.Module, batch: Callable[[], Any]) -> Any:
    """What a block gives in a batch; what comes behind it is not run."""
    found: list[Any] = []

    def leave(_: nn.Module, __: tuple[Any, ...], gives: Any) -> None:
        found.append(gives)
        raise Enough

    with ExitStack() as stack, suppress(Enough):
        stack.callback(block.register_forward_hook(leave).remove)
        batch()
    return found[0]


def factors(units: Units, scales: Scales) -> dict[str, Tensor]:
    """Those that are not 1 or 0, by consumer and column."""
    return {site.consumer: scales[site.name].repeat_interleave(site.width) for site in units.sites
            if bool(((scales[site.name] != 1) & (scales[site.name] != 0)).any())}


_Entry = tuple[float, float, str, int]  # importance, weights, site, channel


def _ranked(units: Units, importance: Mapping[str, Tensor]) -> tuple[list[_Entry], list[_Entry]]:
    """The heads of all attentions, and the channels of all MLPs, the most important first."""
    heads, rest = ([(float(value), site.size / site.count, site.name, index) for site in units.sites if units.attends(site) == attention
                    for index, value in enumerate(importance[site.name].tolist())] for attention in (True, False))
    return sorted(heads, reverse=True), sorted(rest, reverse=True)


def _needed(units: Units) -> int:
    """Heads that have to stay: one in a model that keeps keys and values (`surgery.cut.check_left`)."""
    return int(any(site.cache for site in units.anatomy.sites("sublayer") if isinstance(site, SublayerSite)))


def _with(units: Units, entries: Iterable[_Entry]) -> dict[str, Tensor]:
    """The sub-network of these channels."""
    kept = {site.name: torch.zeros(site.count, dtype=torch.bool) for site in units.sites}
    for _, _, name, index in entries:
        kept[name][index] = True
    return kept


def _affordable(entries: Sequence[_Entry], budget: float) -> int:
    """How many of the first fit."""
    count = 0
    for _, cost, _, _ in entries:
        budget -= cost
        if budget < -1e-9:
            break
        count += 1
    return count
