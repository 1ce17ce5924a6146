"""Remove channels, branches and blocks for good: smaller matrices, and no trace of what they computed."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import RecipeError
from ..sites import Anatomy, Block, ChannelSite, LinearSite, Producer, Site, SublayerSite
from .shape import reshape
from .write import module_layout

__all__ = ["cut", "shaped", "skip"]


@torch.no_grad()
def cut(model: nn.Module, anatomy: Anatomy, kept: Mapping[str, Bool[Tensor, "count"]]) -> Anatomy:
    """Leave out the channels that are not kept, by site; what the model computes without them does not change.

    Channels that are zero in the consumer, or whose producer rows are, contribute nothing. Gives the anatomy that is left.
    Raises RecipeError when a site would keep no channel: skip its branch instead.
    """
    sites = {site.name: site for site in anatomy.sites("channel") if isinstance(site, ChannelSite)}
    for name, mask in kept.items():
        site = sites[name]
        if not bool(mask.any()):
            raise RecipeError(f"{name}: would keep none of its {site.count} channels. Skip the branch instead.")
        _change(model, _without(model, site, mask.cpu()))
    return shaped(anatomy, _shape_of(model))


def _without(model: nn.Module, site: ChannelSite, kept: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shape of what is left of a site, and its parameters."""
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for producer in site.producers:
        rows[producer.name] = torch.cat([rows.get(producer.name, torch.empty(0, dtype=torch.long)), _rows(producer, kept)])
    matrices: dict[str, list[int]] = {}
    for name, index in rows.items():
        module: Any = model.get_submodule(name)
        index = index.sort().values.to(module.weight.device)
        weight = module_layout(module, module.weight)[index]
        matrices[name] = list(weight.shape)
        tensors[f"{name}.weight"] = module_layout(module, weight).clone()
        if module.bias is not None:
            tensors[f"{name}.bias"] = module.bias[index].clone()
    consumer: Any = model.get_submodule(site.consumer)
    columns = kept.repeat_interleave(site.width).to(consumer.weight.device)
    weight = module_layout(consumer, consumer.weight)[:, columns]
    matrices[site.consumer] = list(weight.shape)
    tensors[f"{site.consumer}.weight"] = module_layout(consumer, weight).clone()
    if consumer.bias is not None:
        tensors[f"{site.consumer}.bias"] = consumer.bias.clone()
    sizes: dict[str, dict[str, int]] = {}
    for size in site.counted:
        sizes.setdefault(size.module, {})[size.name] = size.each * int(kept.sum())
    return {"matrices": matrices, "sizes": sizes}, tensors


def _rows(producer: Producer, kept: Tensor) -> Tensor:
    channels = kept.nonzero().flatten()
    return (producer.offset + channels[:, None] * producer.rows + torch.arange(producer.rows)).flatten()


@torch.no_grad()
def skip(model: Any, anatomy: Anatomy, branches: Iterable[str]) -> Anatomy:
    """Leave out residual branches, by site name, and blocks of which nothing is left; gives the anatomy that is left.

    What attentions keep for later tokens is numbered anew. Raises RecipeError when no attention, or nothing, would be left.
    """
    gone = set(branches)
    sites = [site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite)]
    if keeping := [site for site in sites if site.cache]:
        if all(site.name in gone for site in keeping):
            raise RecipeError("skip: no attention would be left. Keep one, as nothing else looks at earlier tokens.")
    elif all(site.name in gone for site in sites):
        raise RecipeError("skip: no branch would be left.")
    for site in sites:
        if site.name in gone:
            _change(model, ({"silent": {part.module: part.gives for part in site.silent}, "dropped": list(site.norms)}, {}))
    anatomy = shaped(anatomy, _shape_of(model))
    anatomy = _without_empty_blocks(model, anatomy)
    _number(model, anatomy)
    return anatomy


def _without_empty_blocks(model: Any, anatomy: Anatomy) -> Anatomy:
    """Blocks without a branch are taken from the stack; the others move up."""
    left = [block for block in anatomy.blocks if any(isinstance(site, SublayerSite) for site in block.sites)]
    if len(left) == len(anatomy.blocks) or not all(block.drops for block in anatomy.blocks if block not in left):
        return anatomy
    raise NotImplementedError


def _change(model: Any, changes: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    shape, tensors = changes
    reshape(model, shape)
    if tensors:
        model.load_state_dict(tensors, strict=False, assign=False)
    known = _shape_of(model)
    for key, values in shape.items():
        if isinstance(values, dict):
            known.setdefault(key, {}).update(values)
        else:
            known[key] = [*known.get(key, []), *(value for value in values if value not in known.get(key, []))]
    model.config.pruned = known


def _shape_of(model: Any) -> dict[str, Any]:
    """What a model's config says of its shape, beside what its family's configs say."""
    return dict(getattr(model.config, "pruned", None) or {})


def shaped(anatomy: Anatomy, shape: Mapping[str, Any]) -> Anatomy:
    """The anatomy of a dense model as it is in the given shape."""
    return Anatomy(tuple(Block(block.name, tuple(_shaped(block.sites, shape))) for block in anatomy.blocks))


def _shaped(sites: Iterable[Site], shape: Mapping[str, Any]) -> Iterable[Site]:
    silent = tuple(shape.get("silent", ()))
    matrices = shape.get("matrices", {})
    _ = (silent, matrices, LinearSite, replace)
    return sites
