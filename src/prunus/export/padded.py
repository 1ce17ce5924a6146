"""The smallest plain model that a pruned one fits into: what is missing is zero."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..anatomy import describe
from ..checkpoint import check_target, folder, save_model
from ..errors import ExportError
from ..loading import quiet
from ..modelling import head_size, plain_config
from ..sites import ChannelSite
from ..surgery.write import module_layout
from ..traits import model_bytes
from . import Savable

__all__ = ["Padded"]


@dataclass(frozen=True)
class Padded:
    """A folder of the model's own family, without code of its own, for programs that know no other shape. All blocks have as
    many channels as the widest, and branches that were left out are zeros: they are stored and computed again.
    """

    overwrite: bool = False  # replace files in a folder that is not empty
    shard: str = "1GB"  # largest weight file

    def check(self, pruned: Savable, path: Path) -> None:
        model = pruned.model
        if not plain_config(model):
            with torch.device("meta"):
                model = _frame(model)
        check_target(path, self.overwrite, model_bytes(model))

    def save(self, pruned: Savable, path: Path) -> None:
        self.check(pruned, path)
        model = pruned.model if plain_config(pruned.model) else padded(pruned.model)
        with folder(path) as draft:
            save_model(model, pruned.tokenizer, draft, self.shard)


def padded(model: Any) -> Any:
    """A plain model of the same family with the same answers. Raises ExportError when its config builds none."""
    grown = _frame(model)
    known = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in grown.named_parameters():
            if name in known and known[name].shape == value.shape:
                value.copy_(known[name])
            else:  # zeros, and ones for a norm that only branches of zeros read
                value.fill_(float("norm" in name or ".ln_" in name) if name.endswith("weight") else 0.0)
        there = {site.name: site for site in describe(grown).sites("channel")}
        for site in describe(model).sites("channel"):
            grown_site = there[site.name]
            assert isinstance(site, ChannelSite)
            assert isinstance(grown_site, ChannelSite)
            _fill(model, grown, site, grown_site)
    return grown.eval()


def _frame(model: Any) -> Any:
    """A model with as many channels in all blocks as the widest has, or as the dense one, where a config cannot say less."""
    counts: dict[str, int] = {}
    for site in describe(model).sites("channel"):
        assert isinstance(site, ChannelSite)
        for size in site.settings:
            counts[size.name] = max(counts.get(size.name, 0), size.each * site.count)
    data = {key: value for key, value in model.config.to_dict().items() if key != "pruned"}
    if "num_key_value_heads" in counts:
        data["head_dim"] = head_size(model)
    reason = ""
    for settings in (counts, {}):
        try:
            with torch.random.fork_rng(devices=[]), quiet():
                return type(model)(type(model.config).from_dict({**data, **settings})).to(model.dtype)
        except Exception as error:  # transformers raises many kinds when a config is not one
            reason = str(error).strip().splitlines()[0]
    raise ExportError(f"format 'padded': {model.config.model_type} cannot be built with these sizes: {reason}. Use format 'huggingface'.")


def _fill(model: Any, grown: Any, site: ChannelSite, there: ChannelSite) -> None:
    """The site's channels become the first of the grown model's."""
    for mine, theirs in zip(site.producers, there.producers, strict=True):
        old, new = model.get_submodule(mine.name), grown.get_submodule(theirs.name)
        count = site.count * mine.rows
        rows, places = slice(mine.offset, mine.offset + count), slice(theirs.offset, theirs.offset + count)
        module_layout(new, new.weight)[places] = module_layout(old, old.weight)[rows]
        if old.bias is not None:
            new.bias[places] = old.bias[rows]
    old, new = model.get_submodule(site.consumer), grown.get_submodule(there.consumer)
    columns = site.count * site.width
    module_layout(new, new.weight)[:, :columns] = module_layout(old, old.weight)[:, :columns]
