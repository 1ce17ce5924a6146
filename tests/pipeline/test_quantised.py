"""A quantised model: what is saved is what was measured, plain transformers loads it, and pruned weights are zero everywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.achieved import counted, sparsity_of
from prunus.anatomy import describe
from prunus.budget import Budget
from prunus.calibration.sample import Calibration
from prunus.comparing.run import compare
from prunus.compressed import save_compressed
from prunus.criteria.magnitude import Magnitude
from prunus.errors import CorpusError, LoadError, MissingExtra, RecipeError
from prunus.export.huggingface import save
from prunus.granularity import NM
from prunus.loading import load
from prunus.lookup import find, names
from prunus.pipeline import prune
from prunus.quantisation import Grid
from prunus.quantisers.gptq import GPTQ
from prunus.quantisers.rtn import RTN
from prunus.quantising import Plan, Quantised, quantise
from prunus.recipe import Recipe
from prunus.solvers.mask import Mask
from prunus.storage import QUANTISATION

from ..contenders import asked
from ..tiny import FAMILIES, tiny_model, tiny_tokenizer, uneven

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed (pip install 'prunus[quant]')")
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def plan(text: Path, method: str = "gptq", bits: int = 4, group: int = 16) -> Plan:
    return Plan(find("quantisers", method)(), Grid(bits, group), Calibration(str(text), samples=4, length=32))


@pytest.fixture
def half(recipe_for: Callable[..., Recipe]) -> Callable[..., Any]:
    """`half(model)`: two of every four weights gone."""
    def make(model: Any) -> Any:
        recipe = recipe_for(budget=Budget(0.5), solver=Mask(Magnitude()), granularity=NM(2, 4))
        return prune(model, recipe, tokenizer=tiny_tokenizer(), source="tiny")
    return make


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_plain_transformers_loads_what_was_measured_and_so_do_we(family: str, text_file: Path, half: Any, tmp_path: Path) -> None:
    """By its own road, which unpacks the codes when the model first runs."""
    model = half(tiny_model(family)).model
    found = quantise(model, plan(text_file), tokenizer=tiny_tokenizer())
    save_compressed(found, tmp_path / "out")
    theirs = getattr(transformers, FAMILIES[family][2]).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(theirs), logits(model))
    ours = load(tmp_path / "out")
    assert torch.equal(logits(ours.model), logits(model))
    assert (ours.stored, ours.quantised) == ("int4 in groups of 16 by gptq", True)
    assert not hasattr(ours.model.config, "quantization_config")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [Grid(4, 16), Grid(8, 16), Grid(4, 0), Grid(8, 0)], ids=str)
@pytest.mark.parametrize("method", names("quantisers"))
def test_every_grid_and_dtype_comes_back_bit_for_bit(method: str, grid: Grid, dtype: torch.dtype, text_file: Path, tmp_path: Path) -> None:
    model = tiny_model(dtype=dtype)
    found = quantise(model, plan(text_file, method, grid.bits, grid.group), tokenizer=tiny_tokenizer())
    save_compressed(found, tmp_path / "out")
    again = load(tmp_path / "out").model
    assert again.dtype == dtype
    for (name, mine), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_zeros_stay_in_their_places_and_embeddings_as_they_are(text_file: Path, half: Any) -> None:
    model = half(tiny_model()).model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = quantise(model, plan(text_file), tokenizer=tiny_tokenizer())
    for name, weight in model.named_parameters():
        site = name.removesuffix(".weight")
        if site in found.matrices:
            assert (weight[before[name] == 0] == 0).all()
            assert not torch.equal(weight, before[name])
            assert torch.equal(weight, found.matrices[site].weight)
        else:
            assert torch.equal(weight, before[name])
    anatomy = describe(model)
    assert [record.site for record in found.records] == [site.name for site in anatomy.sites("linear")]
    assert sum(record.left for record in found.records) / len(found.records) <= 0.5
    assert 0.5 <= sparsity_of(counted(model, anatomy, anatomy)) < 0.6


def test_codes_take_few_bits_on_the_disk(tmp_path: Path) -> None:
    """4 bits of a weight and a scale of 32 bits of every 64."""
    model = tiny_model(hidden_size=128, intermediate_size=256)
    whole = sum(parameter.numel() for parameter in model.parameters())
    found = quantise(model, Plan(RTN()))
    facts = save_compressed(found, tmp_path / "out")
    packed = sum(rounded.codes.numel() for rounded in found.matrices.values())
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert facts["files"] == {"model.safetensors": size}
    expected = packed * (4 + 32 / 64) / 8 + (whole - packed) * 4
    assert expected < size < expected + 10_000


def test_a_cut_model_is_loaded_with_its_own_code(text_file: Path, tmp_path: Path) -> None:
    model = uneven("llama")
    found = quantise(model, plan(text_file, group=0), tokenizer=tiny_tokenizer())
    save_compressed(found, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    assert torch.equal(logits(theirs), logits(model))
    assert torch.equal(logits(load(tmp_path / "out").model), logits(model))


def test_each_matrix_is_calibrated_on_what_the_model_computes_with_earlier_ones_rounded(text_file: Path) -> None:
    """The last matrix, given to the method with the inputs that hooks see in the rounded model, has the same codes."""
    model, asked_for = tiny_model(), plan(text_file, bits=8)
    dense = tiny_model()
    found = quantise(model, asked_for, tokenizer=tiny_tokenizer())
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=asked_for.calibration.tokens(tiny_tokenizer(), model, 0))
    handle.remove()
    from ..problems import stats_of

    weight = dense.get_submodule(name).weight.detach()
    alone = GPTQ().quantise(weight, weight != 0, Grid(8, 16), stats_of(seen[0].flatten(0, 1)))
    assert (alone.codes != found.matrices[name].codes).float().mean() < 0.01
    by_dense = next(record for record in found.records if record.site == name)
    assert by_dense.error is not None
    assert 0 < by_dense.error < 1e-3


def test_a_quantised_model_is_compared_with_the_dense_one_it_was_made_from(text_file: Path, half: Any, tmp_path: Path) -> None:
    """Its protocol says how its weights are stored, which keeps no pair apart; its history comes from the folder it was made from."""
    dense = tmp_path / "dense"
    tiny_model().save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    save(half(load(dense).model), tmp_path / "half")
    loaded = load(tmp_path / "half")
    save_compressed(quantise(loaded.model, plan(text_file), tokenizer=loaded.tokenizer), tmp_path / "small", str(tmp_path / "half"))
    found = compare([str(dense), str(tmp_path / "small")], asked(), tmp_path / "report")
    small = found.models[1]
    assert small.stored == "int4 in groups of 16 by gptq"
    assert ", float32, weights stored as int4 in groups of 16 by gptq, tokenizer of " in small.measured[0].protocol
    assert all("stored" not in row.protocol for row in found.rows)
    assert small.sparsity is not None
    assert 0.5 <= small.sparsity < 0.6
    assert small.file_bytes == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert small.file_bytes < 0.8 * (found.models[0].file_bytes or 0)
    assert small.made is not None
    assert " && prunus quantise " in small.made.command
    assert " --bits 4 --group 16 --method gptq,damping=0.01 " in small.made.command
    assert "quantisation text" in {overlap.before.split(" (")[0] for overlap in found.overlaps["small"]}
    (tmp_path / "small" / QUANTISATION).write_text('["of somebody else"]')
    again = compare([str(dense), str(tmp_path / "small")], asked(), tmp_path / "other").models[1]
    assert again.stored == "int4 in groups of 16"
    assert again.made is not None
    assert "prunus quantise" not in again.made.command


def facts(found: Quantised, folder: Path) -> Any:
    save_compressed(found, folder)
    return json.loads((folder / QUANTISATION).read_text())


def test_the_folder_says_how_it_came_about(text_file: Path, tmp_path: Path) -> None:
    said = facts(quantise(tiny_model(), plan(text_file), tokenizer=tiny_tokenizer()), tmp_path / "a")
    assert said["method"] == {"name": "gptq", "damping": 0.01}
    assert said["grid"] == {"bits": 4, "group": 16}
    assert said["calibration"]["corpus"] == str(text_file)
    assert len(said["matrices"]) == 14
    assert all(0 < matrix["error"] < 0.1 for matrix in said["matrices"])
    near = facts(quantise(tiny_model(), plan(text_file, "rtn")), tmp_path / "b")
    assert near["calibration"] is None
    assert all(matrix["error"] is None for matrix in near["matrices"])


@pytest.mark.parametrize(("model", "settings", "reason"), [
    (lambda: tiny_model("gpt2"), {}, r"transformer\.h\.0\.attn\.c_attn is a Conv1D, expected a Linear"),
    (tiny_model, {"group": 64}, r"group = 64: model\.layers\.0\.self_attn\.q_proj has 32 inputs, .* Use 32 or 16, or 0"),
])
def test_what_no_file_could_hold_is_refused_and_the_model_left_as_it_was(model: Any, settings: Any, reason: str, text_file: Path) -> None:
    given = model()
    before = [weight.clone() for weight in given.parameters()]
    with pytest.raises(RecipeError, match=reason):
        quantise(given, plan(text_file, **settings), tokenizer=tiny_tokenizer())
    with pytest.raises(CorpusError):
        quantise(tiny_model(), plan(text_file.with_name("nowhere.txt")), tokenizer=tiny_tokenizer())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, given.parameters(), strict=True))


def test_other_quantisations_are_refused_by_name(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    with pytest.raises(LoadError, match=r"its weights are quantised by 'awq', which is not known here"):
        load(folder)


def test_without_its_package_packing_and_reading_are_refused_in_a_line(text_file: Path, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    found = quantise(tiny_model(), plan(text_file, "rtn"))
    save_compressed(found, tmp_path / "out")
    for module in ("compressed", "storage"):
        monkeypatch.setattr(f"prunus.{module}.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'prunus\[quant\]'"):
        load(tmp_path / "out")
    with pytest.raises(MissingExtra, match=r"pip install 'prunus\[quant\]'"):
        save_compressed(found, tmp_path / "new")
    assert not (tmp_path / "new").exists()
