"""Orders of input channels in which n of every m weights keep the most: channels dealt out to groups, then exchanged."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .traits import total

__all__ = ["best_order", "kept_of"]

_LEAST = 1e-5  # of the importance that is kept: a sweep that brings less is the last
_RELEVANT = 1e-6  # of the mean importance of a group: what an exchange brings less than this is rounding


def kept_of(saliency: Float[Tensor, "parts rows channels"], n: int, m: int) -> float:
    """The importance that is kept of every m neighbouring channels: in every row, that of the n largest."""
    return total(saliency.unflatten(2, (-1, m)).topk(n, dim=3).values)


def best_order(saliency: Float[Tensor, "parts rows channels"], n: int, m: int, sweeps: int = 5, window: int = 256,
               seed: int = 0) -> Int[Tensor, "parts channels"]:
    """For each part the order of its channels in which n:m keeps most importance; never less than as they are.

    It begins with the better of two orders: as they are, or dealt out to groups by their importance, the large ones apart. In each
    of at most `sweeps` sweeps groups are shared out anew, by the seed, to windows of about `window` channels, in which channels of
    two groups are exchanged as long as that helps, at the exact price (as by Pool & Yu 2021, NeurIPS, who have no windows).
    """
    saliency = saliency.float()
    order = _start(saliency, n, m)
    if n == m:
        return order
    generator = torch.Generator().manual_seed(seed)
    kept = kept_of(_in_order(saliency, order), n, m)
    for _ in range(sweeps):
        moved = torch.stack([_sweep(part, places, n, m, max(window // m, 2), generator)
                             for part, places in zip(saliency, order, strict=True)])
        before, kept = kept, kept_of(_in_order(saliency, moved), n, m)
        if kept > before:
            order = moved
        if kept - before <= _LEAST * before:
            break
    return order


def _in_order(saliency: Tensor, order: Tensor) -> Tensor:
    return saliency.gather(2, order[:, None].expand_as(saliency))


def _start(saliency: Tensor, n: int, m: int) -> Int[Tensor, "parts channels"]:
    parts, _, channels = saliency.shape
    ranked = saliency.sum(1).argsort(dim=1, descending=True, stable=True)
    dealt = ranked.unflatten(1, (m, -1)).mT.flatten(1)  # to each group one of the first d / m, one of the next d / m, …
    if kept_of(_in_order(saliency, dealt), n, m) > kept_of(saliency, n, m):
        return dealt
    return torch.arange(channels, device=saliency.device).expand(parts, -1)


def _sweep(saliency: Float[Tensor, "rows channels"], order: Int[Tensor, "channels"], n: int, m: int, width: int,
           generator: torch.Generator) -> Int[Tensor, "channels"]:
    """Groups in random windows of `width` groups, which are searched one after the other."""
    groups = order.view(-1, m).clone()
    for window in torch.randperm(len(groups), generator=generator).to(order.device).split(width):
        places = groups[window].flatten()
        groups[window] = places[_exchanged(saliency[:, places], n, m)].view(-1, m)
    return groups.flatten()


def _exchanged(saliency: Float[Tensor, "rows window"], n: int, m: int) -> Int[Tensor, "window"]:
    """The order after exchanges between groups that help, until none does: in every round those of all pairs that are each other's best.

    With j in the place of i, a row keeps of i's group the n largest of the others, and max(s_j - t_i, 0) more, where t_i is the n-th
    largest of the others. With M_ij the sum of that over rows, exchanging i for j brings M_ij + M_ji - M_ii - M_jj. Exchanges of
    different pairs of groups add up.
    """
    size = saliency.shape[1]
    order = torch.arange(size, device=saliency.device)
    columns = saliency.T.contiguous()
    least = _RELEVANT * m * float(columns.sum(1).mean())
    worth = _worth(columns, columns, n, m)
    for _ in range(size):
        one, other = _pairs(worth, m, least)
        if not len(one):
            break
        turn = torch.arange(size, device=order.device)
        turn[one], turn[other] = other, one
        order, columns, worth = order[turn], columns[turn], worth[:, turn]
        changed = (torch.cat([one, other])[:, None] // m * m + torch.arange(m, device=order.device)).flatten()
        worth[changed] = _worth(columns[changed], columns, n, m)
    return order


def _worth(groups: Float[Tensor, "some rows"], columns: Float[Tensor, "window rows"], n: int, m: int) -> Float[Tensor, "some window"]:
    """M, for all channels of some groups; sums of max(s - t, 0) are (sum |s - t| + sum s - sum t) / 2."""
    members = groups.unflatten(0, (-1, m))
    largest = members.topk(n + 1, dim=1).values
    last, following = largest[:, n - 1 : n], largest[:, n:]
    others = torch.where(members >= last, following, last).flatten(0, 1)  # without itself, the n-th largest
    return (torch.cdist(others, columns, p=1) + columns.sum(1) - others.sum(1, keepdim=True)) / 2


def _pairs(worth: Float[Tensor, "window window"], m: int, least: float) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Channels to exchange: the best of every two groups, of those groups that are each other's best."""
    groups = len(worth) // m
    own = worth.diagonal()
    gain = (worth + worth.T - own[:, None] - own).view(groups, m, groups, m).transpose(1, 2).flatten(2)
    best, which = gain.max(2)
    value, partner = best.fill_diagonal_(-torch.inf).max(1)
    index = torch.arange(groups, device=worth.device)
    first = index[(partner[partner] == index) & (index < partner) & (value > least)]
    second = partner[first]
    pair = which[first, second]
    return first * m + pair // m, second * m + pair % m
