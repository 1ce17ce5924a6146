"""Remove channels, branches and blocks for good: smaller matrices, and no trace of what was computed for nothing."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..anatomy import describe
from ..errors import RecipeError
from ..shape import reshape
from ..sites import Anatomy, ChannelSite, SublayerSite
from ..traits import module_layout, owned_rows

__all__ = ["check_left", "cut", "cut_unread", "skip"]

Shape = dict[str, Any]


def check_left(anatomy: Anatomy, branches: Iterable[str]) -> None:
    """Refuse to leave out all branches, or all that keep keys and values. Raises RecipeError."""
    gone = set(branches)
    sites = [site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite)]
    for what, needed in (("attention", [site.name for site in sites if site.cache]), ("branch", [site.name for site in sites])):
        if needed and gone.issuperset(needed):
            raise RecipeError(f"no {what} would be left, and one must stay. Use a lower sparsity, or keep one: --skip '{needed[0]}*'.")


@torch.no_grad()
def cut(model: Any, anatomy: Anatomy, kept: Mapping[str, Bool[Tensor, "count"]]) -> Anatomy:
    """Leave out the channels that are not kept, by site, and say so in the model's config; gives the anatomy that is left.

    Outputs do not change where the channels contribute nothing: their columns of the consumer, or their producer rows with
    their biases, are 0. Raises RecipeError when a site would keep no channel.
    """
    sites = {site.name: site for site in anatomy.sites("channel") if isinstance(site, ChannelSite)}
    for name, mask in kept.items():
        if not bool(mask.any()):
            raise RecipeError(f"{name}: would keep none of its {sites[name].count} channels. Skip the branch instead.")
        if bool(mask.all()):
            continue
        tensors = dict(_left(model, sites[name], mask.cpu()))
        matrices = {path.removesuffix(".weight"): list(_seen(model, path, value).shape) for path, value in tensors.items()
                    if path.endswith(".weight")}
        sizes: dict[str, dict[str, int]] = {}
        for size in sites[name].counted:
            sizes.setdefault(size.module, {})[size.name] = size.each * int(mask.sum())
        _change(model, {"matrices": matrices, "sizes": sizes})
        model.load_state_dict(tensors, strict=False)
    return describe(model)


@torch.no_grad()
def cut_unread(model: Any, anatomy: Anatomy, sites: Iterable[ChannelSite]) -> Anatomy:
    """Leave out the channels whose columns of the consumer are 0, and branches that have lost all of them; gives what is left."""
    kept: dict[str, Tensor] = {}
    for site in sites:
        consumer: Any = model.get_submodule(site.consumer)
        read = module_layout(consumer, consumer.weight).any(0)
        kept[site.name] = read.view(site.count, site.width).any(1).cpu()
    empty = [name.removesuffix(".channels") for name, mask in kept.items() if not bool(mask.any())]
    check_left(anatomy, empty)
    left = cut(model, anatomy, {name: mask for name, mask in kept.items() if bool(mask.any())})
    return skip(model, left, empty) if empty else left


def _left(model: nn.Module, site: ChannelSite, kept: Tensor) -> Iterable[tuple[str, Tensor]]:
    """The parameters of a site's matrices without the channels that go, in their modules' layout."""
    rows: dict[str, list[Tensor]] = {}
    for producer in site.producers:
        rows.setdefault(producer.name, []).append(owned_rows(kept.nonzero().flatten(), producer.rows, producer.offset))
    for name, parts in rows.items():
        module: Any = model.get_submodule(name)
        index = torch.cat(parts).sort().values.to(module.weight.device)
        yield f"{name}.weight", module_layout(module, module_layout(module, module.weight)[index]).clone()
        if module.bias is not None:
            yield f"{name}.bias", module.bias[index].clone()
    consumer: Any = model.get_submodule(site.consumer)
    columns = kept.repeat_interleave(site.width).to(consumer.weight.device)
    yield f"{site.consumer}.weight", module_layout(consumer, module_layout(consumer, consumer.weight)[:, columns]).clone()
    if consumer.bias is not None:
        yield f"{site.consumer}.bias", consumer.bias.clone()


def _seen(model: nn.Module, path: str, value: Tensor) -> Tensor:
    return module_layout(model.get_submodule(path.rpartition(".")[0]), value)


def skip(model: Any, anatomy: Anatomy, branches: Iterable[str]) -> Anatomy:
    """Leave out residual branches, by site name, and blocks that have none left; gives the anatomy that is left.

    A branch adds nothing where the matrix that its output leaves is 0; then outputs do not change. The attentions that stay
    are numbered anew in the cache. Raises RecipeError when no attention of a model that has a cache, or nothing, would be left.
    """
    gone = set(branches)
    check_left(anatomy, gone)
    sites = {site.name: site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite)}
    silent = {part.module: part.gives for name in gone for part in sites[name].silent}
    _change(model, {"silent": silent, "dropped": [norm for name in sorted(gone) for norm in sites[name].norms]})
    empty = [depth for depth, block in enumerate(anatomy.blocks)
             if all(site.name in gone and site.norms for site in block.sites if isinstance(site, SublayerSite))]
    if empty:
        _remove_blocks(model, anatomy, empty)
    left = describe(model)
    _number(model, left)
    return left


def _remove_blocks(model: Any, anatomy: Anatomy, empty: list[int]) -> None:
    """Take blocks from the stack; the others move up, in the config too."""
    config = model.config
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise RecipeError("skip: this model scales attention by its depth, which a block would lose with those before it. "
                          "Keep a branch of every block.")
    stack = anatomy.blocks[0].name.rpartition(".")[0]
    left = [depth for depth in range(len(anatomy.blocks)) if depth not in empty]
    parent, _, name = stack.rpartition(".")
    modules = model.get_submodule(stack)
    setattr(model.get_submodule(parent), name, nn.ModuleList(modules[depth] for depth in left))
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(left)
    if types is not None:
        config.layer_types = [types[depth] for depth in left]
    moved = {f"{stack}.{old}.": f"{stack}.{new}." for new, old in enumerate(left)}
    config.pruned = _moved(config.pruned, moved)


def _moved(shape: Shape, moved: Mapping[str, str]) -> Shape:
    """A shape with other paths; what was said of blocks that are gone is left out."""
    def path(old: str) -> str | None:
        return next((new + old.removeprefix(start) for start, new in moved.items() if old.startswith(start)), None)

    found: Shape = {}
    for key, values in shape.items():
        if isinstance(values, dict):
            found[key] = {new: value for old, value in values.items() if (new := path(old))}
        else:
            found[key] = [new for old in values if (new := path(old))]
    return {key: values for key, values in found.items() if values}


def _number(model: Any, anatomy: Anatomy) -> None:
    """Number the attentions in the cache so that the first place, and the first of every type of attention, is used.

    A cache asks its first place, or its first of a type, how many tokens it holds; places are of a type as the config says.
    """
    bearing = {depth: site.cache for depth, block in enumerate(anatomy.blocks) for site in block.sites
               if isinstance(site, SublayerSite) and site.cache}
    if not bearing:
        return
    types = list(getattr(model.config, "layer_types", None) or [""] * len(anatomy.blocks))
    used = {types[depth] for depth in bearing}
    places = [kind if kind in used else types[next(iter(bearing))] for kind in types]
    if places != types:
        model.config.layer_types = places
    free = {kind: [place for place, other in enumerate(places) if other == kind] for kind in used}
    numbers = {path: free[types[depth]].pop(0) for depth, path in bearing.items()}
    reshape(model, {"cache": numbers})
    shape = {**getattr(model.config, "pruned", {}), "cache": {path: place for (depth, path), place in
                                                            zip(bearing.items(), numbers.values(), strict=True) if place != depth}}
    model.config.pruned = {key: values for key, values in shape.items() if values}


def _change(model: Any, shape: Shape) -> None:
    """Reshape the model, and remember in its config what it has become."""
    reshape(model, shape)
    known = copy.deepcopy(getattr(model.config, "pruned", None) or {})
    for key, values in shape.items():
        if isinstance(values, dict):
            known[key] = {**known.get(key, {}), **values}
        else:
            known[key] = [*known.get(key, []), *values]
    model.config.pruned = {key: values for key, values in known.items() if values}
