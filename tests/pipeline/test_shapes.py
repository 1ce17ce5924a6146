"""A cut model as files: plain transformers opens it, in another process, and it answers the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.anatomy import describe
from prunus.export.huggingface import save
from prunus.loading import load
from prunus.result import Pruned
from prunus.surgery.cut import cut, skip

from ..tiny import CAUSAL, FAMILIES, tiny_classifier, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256

OPEN = """
import sys, torch, transformers
assert "prunus" not in sys.modules
folder, auto = sys.argv[1:3]
tokens = torch.arange(40).view(2, 20) * 7 % 256
model, report = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
size = sum(parameter.numel() for parameter in model.parameters())
torch.save({"logits": model.eval()(input_ids=tokens).logits.detach(), "parameters": size}, sys.argv[3])
model.save_pretrained(sys.argv[4])
again = getattr(transformers, auto).from_pretrained(sys.argv[4], trust_remote_code=True)
assert torch.equal(again.eval()(input_ids=tokens).logits, model(input_ids=tokens).logits)
"""


def report_of(model: Any) -> Any:
    from prunus.budget import Budget
    from prunus.criteria.magnitude import Magnitude
    from prunus.pipeline import prune
    from prunus.recipe import Recipe, Stage
    from prunus.solvers.mask import Mask

    recipe = Recipe((Stage(budget=Budget(1.0), solver=Mask(Magnitude())),), metrics=(), prompts=())
    return prune(model, recipe, tokenizer=tiny_tokenizer(), source="tiny").report


def uneven(model: Any) -> None:
    anatomy = describe(model)
    sites = anatomy.sites("channel")
    cut(model, anatomy, {site.name: torch.arange(site.count) % (2 + index) != 0 for index, site in enumerate(sites)})
    skip(model, describe(model), [describe(model).sites("sublayer")[0].name])


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize(("family", "make"), [*((family, tiny_model) for family in FAMILIES), *((one, tiny_classifier) for one in CAUSAL)])
def test_an_uneven_model_is_opened_in_another_process_by_transformers_alone(family: str, make: Any, tmp_path: Path) -> None:
    model = make(family)
    if make is tiny_classifier:
        model.config.pad_token_id = 257  # without one it reads one text at a time
    report = report_of(tiny_model(family))
    uneven(model)
    save(Pruned(model, tiny_tokenizer(), report), tmp_path / "out")
    auto = next(key for key in json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] if key != "AutoConfig")
    ran = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path / "out"), auto, str(tmp_path / "found.pt"), str(tmp_path / "again")],
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found["logits"], logits(model))
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_prunus_opens_it_without_running_its_code(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    report = report_of(tiny_model(family))
    uneven(model)
    save(Pruned(model, tiny_tokenizer(), report), tmp_path / "out")
    (tmp_path / "out" / "modeling_pruned.py").write_text("raise SystemExit('run')")
    loaded: Any = load(tmp_path / "out").model
    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded) is type(model)
    assert describe(loaded) == describe(model)
    save(Pruned(loaded, tiny_tokenizer(), report), tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again").model), logits(model))
