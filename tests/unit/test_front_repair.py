"""What is kept of a point of a front is refitted, then repaired."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.anatomy import describe
from prunus.calibration.sample import Calibration
from prunus.frontier import repair
from prunus.search.subnetwork import Units
from prunus.silence import silenced
from prunus.sites import SublayerSite
from prunus.traits import module_layout

from ..genomes import fitted
from ..tiny import tiny_model, tiny_tokenizer


@dataclass
class Looking:
    """A recovery that repairs nothing, and remembers what it was given."""

    given: tuple[Sequence[SublayerSite], Mapping[str, Tensor]] | None = None

    def check(self, *_: Any) -> None:
        pass

    def recover(self, model: Any, anatomy: Any, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor], *_: Any) -> Sequence[str]:
        self.given = gone, dense
        return ("looked",)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_reads_channels_that_stay_is_their_least_squares_fit_behind_branches_that_are_gone(family: str, text_file: Path) -> None:
    model, looking = tiny_model(family), Looking()
    text = Calibration(str(text_file), samples=16, length=32)
    units = Units(describe(model), {})
    attention, mlp, heads, _ = units.sites
    kept = {site.name: torch.ones(site.count, dtype=torch.bool) for site in units.sites}
    kept[attention.name][:] = False
    kept[mlp.name][::2] = kept[heads.name][:1] = False
    before = {name: value.clone() for name, value in model.named_parameters()}

    assert repair(model, tiny_tokenizer(), units, kept, looking, text) == ("looked",)

    assert looking.given is not None
    gone, dense = looking.given
    assert [site.name for site in gone] == [attention.branch]
    assert {name.rsplit(".", 1)[0] for name in dense} == {*mlp.matrices, *heads.matrices}
    assert all(torch.equal(value, before[name]) for name, value in dense.items())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters() if name not in dense)
    repaired, tokens = deepcopy(model.state_dict()), text.tokens(tiny_tokenizer(), model, 0)
    for site in (mlp, heads):
        model.load_state_dict({name: before.get(name, value) if name.startswith(site.matrices) else value
                               for name, value in repaired.items()})
        with silenced(model, gone):
            expected = fitted(model, site, kept[site.name].repeat_interleave(site.width), tokens)
        assert torch.allclose(module_layout(model.get_submodule(site.consumer), repaired[f"{site.consumer}.weight"]), expected, atol=1e-3)
