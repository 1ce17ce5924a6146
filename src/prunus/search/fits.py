"""What a matrix that reads channels weighs where some of them are gone: fitted, by least squares, to give what it gave with all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..calibration.pair import Watch, unwatched
from ..calibration.placement import Placement
from ..calibration.stream import stream
from ..errors import LoadError
from ..files import fingerprint, intact, keep_tensors
from ..least_squares import fit_support
from ..sites import Anatomy, ChannelSite, LinearSite
from ..surgery.write import module_layout

__all__ = ["Fits"]

_DAMPING = 0.01  # added to the Gram's diagonal, as a fraction of its mean; as the solver `refit` does


@dataclass(frozen=True)
class Fits:
    """A folder with the damped Gram of what every consumer of channels reads in the dense model. A fit is made when somebody looks at
    it, for whatever channels stay, and of one matrix at a time a Gram is held."""

    folder: Path

    @classmethod
    @torch.no_grad()
    def build(cls, folder: Path, model: Any, anatomy: Anatomy, sites: Sequence[ChannelSite], tokens: Tensor, identity: str,
              placement: Placement = Placement(), batch: int = 4, watch: Watch = unwatched) -> "Fits":
        """Collect what is missing in one pass through the dense model. `identity` says what it depends on: what was collected for
        another is collected anew. Raises CalibrationError when the tokens cannot be used."""
        folder.mkdir(parents=True, exist_ok=True)
        consumers = {site.consumer for site in sites if (intact(_file(folder, site.consumer)) or {}).get("identity") != identity}
        missing = [site for site in anatomy.sites("linear") if isinstance(site, LinearSite) and site.name in consumers]
        for done, views in enumerate(stream(model, anatomy, missing, tokens, "gram", placement, batch) if missing else (), 1):
            for view in views:
                view.stats.check()
                keep_tensors(_file(folder, view.site.name), {"gram": view.stats.damped(_DAMPING).cpu()}, identity=identity)
            del views, view  # statistics go before the next ones are made
            watch("collecting Grams", done, len(missing))
        return cls(folder)

    @classmethod
    def known(cls, folder: Path, sites: Sequence[ChannelSite]) -> "Fits":
        """What was collected before, whatever for. Raises LoadError where some of it is not there, or not what it was."""
        if not all(intact(_file(folder, site.consumer)) for site in sites):
            raise LoadError(f"{folder}: does not hold the Grams of all channels as they were collected. Search again, with --resume: they "
                            "are collected anew.")
        return cls(folder)

    @torch.no_grad()
    def weight(self, module: Any, site: ChannelSite, mask: Bool[Tensor, "channels"]) -> Tensor:
        """Of a consumer, the dense weight of which its module has, where the channels of `mask` stay; 0 in the columns of the others.
        In the module's own layout and dtype."""
        from safetensors import safe_open

        dense = module_layout(module, module.weight.detach()).float()
        with safe_open(_file(self.folder, site.consumer), framework="pt") as file:
            gram = file.get_tensor("gram").to(dense.device)
        columns = mask.repeat_interleave(site.width).to(dense.device)
        return module_layout(module, fit_support(dense, columns.expand_as(dense), gram)).to(module.weight)


def _file(folder: Path, matrix: str) -> Path:
    return folder / f"{fingerprint(matrix)}.safetensors"
