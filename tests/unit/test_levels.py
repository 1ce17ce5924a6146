"""The level store gives back what the solver said, at every level, or refuses."""

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from prunus.anatomy import describe
from prunus.calibration.stream import stream
from prunus.criteria.magnitude import Magnitude
from prunus.errors import CalibrationError, RecipeError
from prunus.granularity import NM, Granularity, Unstructured
from prunus.problem import LayerProblem
from prunus.search.levels import LevelStore, planned_bytes
from prunus.sites import LinearSite
from prunus.solvers import Solver
from prunus.solvers.mask import Mask
from prunus.solvers.sparsegpt import SparseGPT
from prunus.subnet import subnet
from prunus.surgery.write import read_weight

from ..problems import generator
from ..tiny import tiny_model

LEVELS = (0.0, 0.5, 0.8)
TOKENS = torch.randint(0, 250, (4, 24), generator=generator(0))


def sites_of(model: Any) -> list[LinearSite]:
    return [site for site in describe(model).sites("linear") if isinstance(site, LinearSite)]


def build(folder: Path, model: Any, solver: Solver = SparseGPT(), granularity: Granularity = Unstructured("matrix"),
          identity: str = "a", levels: tuple[float, ...] = LEVELS, **settings: Any) -> LevelStore:
    return LevelStore.build(folder, model, describe(model), dict.fromkeys(sites_of(model), granularity), TOKENS, solver, levels,
                            identity, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_level_of_every_site_is_what_the_solver_gives_for_the_dense_model(family: str, dtype: Any, tmp_path: Path) -> None:
    model = tiny_model(family, dtype)
    store = build(tmp_path, model)
    for views in stream(model, describe(model), sites_of(model), TOKENS, "gram"):
        for view in views:
            module: Any = view.module
            for index, level in enumerate(LEVELS):
                problem = LayerProblem(read_weight(module), view.stats, Unstructured("matrix"), level, view.site.name)
                expected = SparseGPT().solve(problem)
                with subnet(model, {f"{view.site.name}.weight": store.weight(view.site.name, index, module.weight)}):
                    found = read_weight(module)
                assert torch.equal(found, expected.weight.to(dtype).float())
                assert store.entries[view.site.name].errors[index] == problem.error(expected.weight)


def test_the_dense_level_is_the_model_s_own_memory(tmp_path: Path) -> None:
    model = tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    assert build(tmp_path, model).weight("model.layers.0.mlp.up_proj", 0, weight) is weight


def test_a_store_takes_what_was_planned_and_less_than_dense_copies(tmp_path: Path) -> None:
    model = tiny_model(intermediate_size=256)
    store = build(tmp_path, model, levels=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9))
    planned = planned_bytes(sites_of(model), store.levels, 4)
    headers = 1200 * len(store.entries)
    assert planned <= store.bytes <= planned + headers
    assert store.bytes < 0.6 * 6 * sum(site.size * 4 for site in sites_of(model))


def test_what_is_there_is_not_solved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, solved = tiny_model(), []
    first = build(tmp_path, model)
    removed = first.entries["model.layers.1.mlp.up_proj"]
    (tmp_path / removed.file).unlink()
    second = build(tmp_path, model, watch=solved.append)
    assert solved == ["model.layers.1.mlp.up_proj"]
    assert second == first


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    model = tiny_model()
    name = "model.layers.0.self_attn.o_proj"
    first = build(tmp_path, model)
    file = tmp_path / first.entries[name].file
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    solved: list[str] = []
    assert build(tmp_path, model, watch=solved.append) == first
    assert solved == [name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 3}'], ids=["empty", "cut off", "no object", "another hash"])
def test_a_damaged_note_is_made_again_and_a_damaged_manifest_is_refused(text: str, tmp_path: Path) -> None:
    model = tiny_model()
    first = build(tmp_path, model)
    name = "model.layers.0.self_attn.o_proj"
    (tmp_path / f"{first.entries[name].file}.json").write_text(text)
    solved: list[str] = []
    assert build(tmp_path, model, watch=solved.append) == first
    assert solved == [name]
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RecipeError, match=r"holds levels of another run \(format differs\)"):
        build(tmp_path, model)


@pytest.mark.parametrize(("changes", "what"), [({"identity": "b"}, "identity"), ({"levels": (0.0, 0.6)}, "levels")])
def test_a_store_of_another_run_is_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    build(tmp_path, tiny_model())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RecipeError, match=rf"holds levels of another run \({what} differs\)"):
        build(tmp_path, tiny_model(), **changes)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_without_a_gram_matrix_errors_are_no_numbers(tmp_path: Path) -> None:
    store = build(tmp_path, tiny_model(), Mask(Magnitude()), levels=(0.0, 0.5))
    assert all(math.isnan(error) for entry in store.entries.values() for error in entry.errors)
    assert build(tmp_path, tiny_model(), Mask(Magnitude()), levels=(0.0, 0.5)).entries.keys() == store.entries.keys()


def test_n_m_levels_are_stored_like_others(tmp_path: Path) -> None:
    model = tiny_model()
    store = build(tmp_path, model, granularity=NM(2, 4), levels=(0.0, 0.5))
    weight = store.weight("model.layers.0.mlp.up_proj", 1, model.model.layers[0].mlp.up_proj.weight)
    assert ((weight.view(-1, 4) != 0).sum(1) == 2).all()


def test_an_interrupted_build_leaves_nothing_that_does_not_count(tmp_path: Path) -> None:
    """What was being solved beside the interruption is finished, and counts; what was waiting is not begun."""
    model = tiny_model()

    def stop(site: str) -> None:
        if site == "model.layers.0.mlp.gate_proj":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, model, watch=stop)
    there = len(list(tmp_path.glob("*.safetensors.json")))
    assert 6 <= there < 14
    assert not list(tmp_path.glob("*.tmp"))
    solved: list[str] = []
    store = build(tmp_path, model, watch=solved.append)
    assert len(solved) == 14 - there
    assert len(store.entries) == 14
    assert json.loads((tmp_path / "manifest.json").read_text())["levels"] == list(LEVELS)


def test_a_solver_that_fails_beside_the_pass_ends_the_build_with_its_error(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Failing:
        needs: ClassVar[Any] = "gram"
        supports: ClassVar[Any] = (Unstructured,)
        scope: ClassVar[str] = "matrix"

        def solve(self, problem: LayerProblem) -> Any:
            if "layers.1.self_attn.o_proj" in problem.name:
                raise CalibrationError(f"{problem.name}: cannot be solved.")
            return SparseGPT().solve(problem)

    threads = threading.active_count()
    with pytest.raises(CalibrationError, match="o_proj: cannot be solved"):
        build(tmp_path, tiny_model(), Failing())
    assert threading.active_count() == threads


def test_a_subnet_leaves_the_model_its_own_memory_whatever_happens() -> None:
    model = tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    before, address = weight.clone(), weight.data_ptr()

    def interrupted() -> None:
        with subnet(model, {"model.layers.0.mlp.up_proj.weight": torch.zeros_like(weight)}):
            assert (model.model.layers[0].mlp.up_proj.weight == 0).all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.model.layers[0].mlp.up_proj.weight is weight
    assert weight.data_ptr() == address
    assert torch.equal(weight, before)
