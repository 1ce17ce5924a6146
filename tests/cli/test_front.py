"""prunus finetune, search --space, front and extract: from a task or a text to a small model that transformers opens."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prunus.anatomy import describe
from prunus.calibration.tasks import encoded
from prunus.cli.progress import Screen
from prunus.distillation import task_loss
from prunus.errors import CalibrationError, RecipeError
from prunus.files import working_alone
from prunus.front import Front
from prunus.frontier import fits_of, genome_of, thin_of
from prunus.loading import load
from prunus.predictions import answers, score

from .conftest import Ran, saved, task

Prunus = Callable[..., Ran]


def test_from_a_task_to_a_small_model(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path) -> None:
    ran = prunus("finetune", encoder, "--task", task(task_file), "--strategy", "one_shot,temperature=10", "--space", "medium,steps=4",
                 "--order", "fisher", "--epochs", 1, "--out", tmp_path / "super")
    assert ran.code == 0, ran.err
    assert "accuracy on the test split" in ran.err
    assert "the head is new" in ran.err
    assert "derivatives of the loss: " in ran.err
    again = prunus("finetune", tmp_path / "super", "--task", task(task_file), "--strategy", "random", "--order", "fisher", "--steps", 1,
                   "--warmup", 0.5, "--out", tmp_path / "again")
    assert "the head is new" not in again.err
    assert json.loads((tmp_path / "again" / "supernet.json").read_text())["training"]["settings"]["warmup"] == 0.5
    words = ["search", tmp_path / "super", "--task", task(task_file), "--space", "medium,steps=4", "--objectives", "error,params,loss",
             "--evaluations", 14, "--baselines", "rfp,layerdrop,heads,magnitude,wanda", "--out", tmp_path / "run"]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    assert "14 sub-networks" in ran.err
    assert all(f"{phase}: " in ran.err for phase in ("valuing the front", "baseline rfp", "baseline layerdrop"))
    found = Front.load(tmp_path / "run")
    assert found.plan.order == "fisher"  # as the super-network was trained; the search begins with what it says
    trained = json.loads((tmp_path / "super" / "supernet.json").read_text())
    assert {name: list(order) for name, order in found.orders.items()} == trained["orders"]
    trials = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()[1:]]
    rows = numpy.array([trial["values"] for trial in trials])
    better = ((rows[None] <= rows[:, None]).all(2) & (rows[None] < rows[:, None]).any(2)).any(1)  # computed again, plainly
    assert sorted({tuple(row) for row in rows[~better].tolist()}) == sorted({point.values for point in found.points})
    assert found.dense.values[1] == 1
    assert {name: len(points) for name, points in found.baselines.items()} == {"rfp": 8, "layerdrop": 3, "heads": 10, "magnitude": 8,
                                                                               "wanda": 8}
    assert all(0 < volume <= 8 for volume in found.volumes.values())
    assert "Hypervolume of held-out quantiles" in ran.err

    ran = prunus("front", tmp_path / "run")
    assert ran.code == 0, ran.err
    with (tmp_path / "run" / "front.csv").open() as file:
        assert len(list(csv.reader(file))) == len(found.points) + 2
    assert (tmp_path / "run" / "front.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run" / "front.html").read_text()
    assert "http" not in page.split("<script")[0]

    ran = prunus("extract", tmp_path / "run", "--pick", "params<=0.7", "--out", tmp_path / "small")
    assert ran.code == 0, ran.err
    point = found.pick(["params<=0.7"])
    small = load(tmp_path / "small")
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in load(tmp_path / "super").model.parameters())
    examples = encoded(found.plan.task.read(), "test", small.model, small.tokenizer)
    assert 1 - score(small.model, examples).value == pytest.approx(point.held_out[0])
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small", trust_remote_code=True)
    tokens = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(again(input_ids=tokens).logits, small.model(input_ids=tokens).logits, atol=1e-5)
    whole = load(tmp_path / "super").model
    genome = genome_of(whole, found.plan.space, found.orders)
    with torch.no_grad(), genome.worn(whole, point.candidate):
        assert torch.allclose(whole(input_ids=tokens).logits, again(input_ids=tokens).logits, atol=1e-5)


def test_a_search_goes_on_where_it_stopped(prunus: Prunus, headed: Path, task_file: Path, tmp_path: Path) -> None:
    words = ["search", headed, "--task", task(task_file), "--space", "small", "--searcher", "random", "--quiet", "--objectives",
             "error,latency"]
    assert prunus(*words, "--evaluations", 5, "--out", tmp_path / "part").code == 0
    measured = (tmp_path / "part" / "latency.json").read_text()
    shutil.copytree(tmp_path / "part", tmp_path / "whole")  # seconds are never the same twice
    (tmp_path / "whole" / "trials.jsonl").unlink()
    assert prunus(*words, "--evaluations", 9, "--out", tmp_path / "whole", "--overwrite", "--resume").code == 0
    assert prunus(*words, "--evaluations", 9, "--out", tmp_path / "part", "--resume").code == 0
    assert (tmp_path / "part" / "latency.json").read_text() == measured
    first, second = (Front.load(tmp_path / name) for name in ("whole", "part"))
    assert first.points == second.points
    shutil.copytree(headed, tmp_path / "other")
    other = load(headed).model
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    ran = prunus("search", tmp_path / "other", *words[2:], "--evaluations", 9, "--out", tmp_path / "part", "--resume")
    assert (ran.code, "holds the trials of another search" in ran.err) == (2, True)
    ran = prunus(*words, "--evaluations", 9, "--out", tmp_path / "part")
    assert ran.code == 2
    assert "exists and is not empty" in ran.err
    trials = (tmp_path / "part" / "trials.jsonl").read_text()
    with working_alone(tmp_path / "part"):
        ran = prunus(*words, "--evaluations", 9, "--out", tmp_path / "part", "--overwrite")
    assert (ran.code, "another process works in it" in ran.err) == (2, True)
    assert (tmp_path / "part" / "trials.jsonl").read_text() == trials


def test_a_training_goes_on_where_it_stopped(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["finetune", encoder, "--task", task(task_file), "--strategy", "sandwich", "--epochs", 2, "--batch", 16, "--quiet", "--out"]
    assert prunus(*words, tmp_path / "whole").code == 0

    def stop(screen: Screen, progress: Any) -> None:
        if progress.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Screen, "training", stop)
        ran = prunus(*words, tmp_path / "part")
    assert ran.code == 130
    assert "--resume" in ran.err
    assert not (tmp_path / "part").exists()
    assert prunus(*words, tmp_path / "part", "--resume").code == 0
    first, second = (load(tmp_path / name).model.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not list(tmp_path.glob("part.partial*"))


def test_channels_are_not_in_the_order_of_another_text(prunus: Prunus, checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that stopped before anything was trained has its order of channels, and that is of its model and text."""
    words = ["finetune", checkpoint(), "--strategy", "sandwich", "--space", "medium,steps=3", "--order", "wanda", "--samples", 4,
             "--length", 32, "--quiet", "--out", tmp_path / "super"]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunus.finetune.train_supernet", stop)
        assert prunus(*words, "--calibration", text_file).code == 130
    order = (tmp_path / "super.partial" / "orders-wanda.json").read_text()
    ran = prunus(*words, "--resume")
    assert (ran.code, "holds another run" in ran.err) == (2, True)
    assert (tmp_path / "super.partial" / "orders-wanda.json").read_text() == order
    assert prunus(*words, "--calibration", text_file, "--resume").code == 0


def test_a_training_that_diverges_is_not_to_be_resumed(prunus: Prunus, encoder: Path, task_file: Path, tmp_path: Path) -> None:
    ran = prunus("finetune", encoder, "--task", task(task_file), "--rate", 1e38, "--epochs", 3, "--out", tmp_path / "tuned")
    assert ran.code == 2
    assert "--resume" not in ran.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tuned")] == []


def test_a_front_of_a_language_model_on_text(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama", num_hidden_layers=3)
    ran = prunus("search", model, "--space", "medium,steps=7", "--objectives", "divergence,params,latency,flops,memory,loss", "--order",
                 "wanda", "--calibration", text_file, "--samples", 4, "--length", 32, "--search-text", "self,samples=8,length=32",
                 "--evaluations", 12, "--searcher", "morea", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    found = Front.load(tmp_path / "run")
    assert found.dense.values[:5] == pytest.approx((0, 1, 1, 1, 1), abs=1e-6)
    assert set(found.orders) == {f"model.layers.{depth}.{name}.channels" for depth in range(3) for name in ("self_attn", "mlp")}
    trials = [json.loads(line)["values"][1] for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()[1:]]
    begun = list(zip(trials[3:], (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), strict=False))  # behind the largest, the smallest and the middle one
    assert all(share - 0.1 < size <= share for size, share in begun), begun
    for point in found.points:
        assert all(0 <= value <= 1.0001 for value in point.values[1:5])
    assert prunus("extract", tmp_path / "run", "--pick", "params<=0.8", "--pick", "memory<=0.99", "--out", tmp_path / "small").code == 0
    assert prunus("extract", tmp_path / "run", "--pick", "params<=0.8", "--recovery", "patch", "--calibration", text_file, "--samples", 8,
                  "--length", 32, "--out", tmp_path / "repaired").code == 0
    plain, repaired = (load(tmp_path / name).model.state_dict() for name in ("small", "repaired"))
    assert {name: value.shape for name, value in plain.items()} == {name: value.shape for name, value in repaired.items()}
    assert any(not torch.equal(value, repaired[name]) for name, value in plain.items())
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    assert small.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)
    words = ["extract", tmp_path / "run", "--out", tmp_path / "wrong"]
    other = saved("llama", tmp_path / "other", num_hidden_layers=3, seed=1)
    for model in (other, saved("opt", tmp_path / "opt")):
        ran = prunus(*words, "--model", model)
        assert (ran.code, ran.err.splitlines()[-1]) == (2, f"prunus: model '{model}': its weights are not those that were searched. Name "
                                                           "the model that was (--model), or search again.")
    assert not (tmp_path / "wrong").exists()
    assert prunus(*words, "--dtype", "bfloat16").code == 0  # the same weights, rounded


def zeros(folder: Path) -> dict[str, int]:
    """By block matrix of a saved model."""
    model = load(folder).model
    return {site.name: int((model.get_submodule(site.name).weight == 0).sum()) for site in describe(model).sites("linear")}


def test_a_super_network_is_searched_with_sparse_weights_too(prunus: Prunus, encoder: Path, headed: Path, task_file: Path,
                                                                 tmp_path: Path) -> None:
    assert prunus("finetune", encoder, "--task", task(task_file), "--strategy", "sandwich", "--space", "medium,steps=2", "--steps", 4,
                  "--out", tmp_path / "super", "--quiet").code == 0
    words = ["search", tmp_path / "super", "--task", task(task_file), "--space", "mixed,steps=2,levels=3", "--objectives",
             "loss,params,flops", "--evaluations", 12, "--searcher", "ehvi", "--baselines", "layerdrop", "--out", tmp_path / "run"]
    ran = prunus(*words)
    assert ran.code == 0, ran.err
    found = Front.load(tmp_path / "run")
    assert found.dense.values[1:] == (1, 1)
    point = min(found.points, key=lambda point: point.values[1] / point.values[2])  # the sparsest
    assert prunus("extract", tmp_path / "run", "--pick", f"params<={point.values[1]}", "--pick", f"flops<={point.values[2]}", "--out",
                  tmp_path / "small").code == 0
    picked = found.pick([f"params<={point.values[1]}", f"flops<={point.values[2]}"])
    small, whole = load(tmp_path / "small"), load(tmp_path / "super").model
    left = sum(int(small.model.get_submodule(site.name).weight.count_nonzero()) for site in describe(small.model).sites("linear"))
    assert left / sum(site.size for site in describe(whole).sites("linear")) == pytest.approx(picked.values[1])
    assert max(zeros(tmp_path / "small").values()) > 0
    examples = encoded(found.plan.task.read(), "test", small.model, small.tokenizer)
    assert float(task_loss(answers(small.model, examples), examples.targets)) == pytest.approx(picked.held_out[0], abs=1e-5)

    file = next((tmp_path / "run" / "levels").glob("*.safetensors"))
    file.unlink()
    ran = prunus("extract", tmp_path / "run", "--out", tmp_path / "other", "--quiet")
    assert (ran.code, "does not hold all matrices" in ran.err, len(ran.err.splitlines())) == (2, True, 1)
    before = (tmp_path / "run" / "trials.jsonl").read_text()
    assert prunus(*words, "--resume").code == 0
    assert file.exists()
    assert (tmp_path / "run" / "trials.jsonl").read_text() == before
    ran = prunus("extract", tmp_path / "run", "--recovery", "patch", "--out", tmp_path / "other", "--quiet")
    assert (ran.code, "--recovery does not go with space mixed" in ran.err) == (2, True)
    ran = prunus(*words[:5], "mixed,steps=3", *words[6:], "--overwrite", "--quiet")
    assert (ran.code, "was trained with" in ran.err) == (2, True)
    assert (tmp_path / "run" / "trials.jsonl").read_text() == before  # nothing is lost
    assert prunus("search", headed, *words[2:5], "mixed,steps=2,levels=2,solver=magnitude", *words[6:], "--overwrite", "--quiet").code == 0
    assert prunus("extract", tmp_path / "run", "--out", tmp_path / "last", "--quiet").code == 0
    ran = prunus("finetune", encoder, "--task", task(task_file), "--strategy", "sandwich", "--space", "mixed,steps=2", "--out",
                 tmp_path / "no", "--quiet")
    assert (ran.code, "Train with --space medium,steps=2" in ran.err) == (2, True)


def test_a_language_model_is_searched_with_sparse_weights_too(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama", num_hidden_layers=3)
    ran = prunus("search", model, "--space", "mixed,steps=4,levels=2,sparsest=0.5,solver=wanda", "--objectives",
                 "divergence,params,flops,memory", "--order", "wanda", "--calibration", text_file, "--samples", 4, "--length", 32,
                 "--search-text", "self,samples=8,length=32", "--evaluations", 12, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    found = Front.load(tmp_path / "run")
    assert found.dense.values == pytest.approx((0, 1, 1, 1), abs=1e-6)
    assert any(point.values[1] < point.values[2] - 0.05 for point in found.points)
    assert prunus("extract", tmp_path / "run", "--out", tmp_path / "small").code == 0
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    whole, tokens = load(model).model, torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    genome = genome_of(whole, found.plan.space, found.orders, thin_of(whole, found.plan.space, tmp_path / "run"))
    with torch.no_grad(), genome.worn(whole, found.pick().candidate):
        assert torch.allclose(whole(input_ids=tokens).logits, small(input_ids=tokens).logits, atol=1e-5)


def test_a_search_that_refits_extracts_what_it_valued(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama", num_hidden_layers=3)
    words = ["search", model, "--space", "medium,steps=4", "--order", "wanda", "--calibration", "self", "--samples", 64, "--length", 32,
             "--search-text", "self,samples=8,length=32", "--searcher", "random", "--baselines", "wanda", "--evaluations", 10, "--quiet"]
    assert prunus(*words, "--refit", "--out", tmp_path / "run").code == 0
    assert prunus(*words, "--out", tmp_path / "cut").code == 0
    fitted, cut = (Front.load(tmp_path / name) for name in ("run", "cut"))
    pairs = list(zip(fitted.baselines["wanda"], cut.baselines["wanda"], strict=True))
    alive = [(one.values[0], other.values[0]) for one, other in pairs if other.values[0] < 1]  # smaller ones say nothing any more
    assert len(alive) > 2
    assert all(one < other for one, other in alive)

    point = fitted.pick(["params<=0.7"])
    assert prunus("extract", tmp_path / "run", "--pick", "params<=0.7", "--out", tmp_path / "small").code == 0
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    whole, tokens = load(model).model, torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    genome = genome_of(whole, fitted.plan.space, fitted.orders, fits=fits_of(whole, fitted.plan, tmp_path / "run"))
    with torch.no_grad(), genome.worn(whole, point.candidate):
        assert torch.allclose(whole(input_ids=tokens).logits, small(input_ids=tokens).logits, atol=1e-5)

    trials = (tmp_path / "run" / "trials.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "fits")
    ran = prunus("extract", tmp_path / "run", "--out", tmp_path / "other", "--quiet")
    assert (ran.code, "does not hold the Grams" in ran.err, len(ran.err.splitlines())) == (2, True, 1)
    assert prunus("extract", tmp_path / "run", "--recovery", "patch", "--calibration", text_file, "--samples", 8, "--length", 32, "--out",
                  tmp_path / "other", "--quiet").code == 0
    assert prunus(*words, "--refit", "--out", tmp_path / "run", "--resume").code == 0
    assert (tmp_path / "run" / "trials.jsonl").read_text() == trials
    ran = prunus(*words, "--out", tmp_path / "run", "--resume")
    assert (ran.code, "holds the trials of another search" in ran.err) == (2, True)


@pytest.mark.parametrize(("flags", "reasons"), [
    (["--space", "mixed", "--refit"], ["refit: space mixed has weights that a solver made"]),
    (["--space", "mixed,levels=1"], ["expected no negative number of steps, 2 to 255 levels"]),
    (["--space", "mixed,solver=alp"], ["search.space.solver", "'alp' is unknown"]),
    (["--space", "mixed,solver=taylor"], ["solver Mask: reads the loss by channel", "Use sparsegpt"]),
    (["--space", "smal"], ["'smal' is unknown", "Did you mean 'small'?"]),
    (["--space", "small", "--objectives", "error,parms"], ["'parms' is unknown", "Did you mean 'params'?"]),
    (["--space", "small", "--objectives", "error,error"], ["at least two, none of them twice"]),
    (["--space", "small", "--objectives", "params,memory"], ["expected one of error, loss, divergence"]),
    (["--space", "small", "--sparsity", "0.5"], ["--sparsity does not go with --space"]),
    (["--objectives", "error,params"], ["--objectives says nothing without --space"]),
    (["--space", "small", "--baselines", "layrdrop"], ["'layrdrop' is unknown", "Did you mean 'layerdrop'?"]),
    (["--space", "small", "--baselines", "taylor"], ["baseline 'taylor'", "Use rfp"]),
    (["--space", "small", "--searcher", "asha"], ["none is trained by itself"]),
    (["--space", "small", "--searcher", "nsga"], ["'nsga' is unknown"]),
    (["--space", "small", "--order", "taylr"], ["'taylr' is unknown", "Did you mean 'taylor'?"]),
    (["--space", "small", "--order", "taylor"], ["order = 'taylor'", "Use fisher"]),
])
def test_a_search_for_a_front_that_cannot_be(flags: list[str], reasons: list[str], prunus: Prunus, headed: Path, task_file: Path,
                                             tmp_path: Path) -> None:
    ran = prunus("search", headed, "--task", task(task_file), *flags, "--out", tmp_path / "run", "--quiet")
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    for reason in reasons:
        assert reason in lines[0]
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_together(prunus: Prunus, encoder: Path, headed: Path, task_file: Path, tmp_path: Path) -> None:
    ran = prunus("search", encoder, "--space", "small", "--out", tmp_path / "run", "--quiet")
    assert (ran.code, "does not predict the next token" in ran.err) == (2, True)
    words = ["search", headed, "--task", task(task_file), "--evaluations", 4, "--quiet", "--space"]
    assert prunus(*words, "layer", "--out", tmp_path / "run").code == 0
    ran = prunus("extract", tmp_path / "run", "--pick", "params<=0.01", "--out", tmp_path / "small", "--quiet")
    assert (ran.code, "The nearest has" in ran.err) == (2, True)
    ran = prunus("extract", tmp_path / "run", "--pick", "param<=0.5", "--out", tmp_path / "small", "--quiet")
    assert ran.code == 2
    assert not (tmp_path / "small").exists()
    ran = prunus("front", encoder, "--quiet")
    assert (ran.code, "holds no front" in ran.err) == (2, True)
    (tmp_path / "run" / "front.json").write_text("{")
    ran = prunus("front", tmp_path / "run", "--quiet")
    assert (ran.code, "is damaged" in ran.err) == (2, True)
    assert prunus("finetune", encoder, "--task", task(task_file), "--strategy", "sandwich", "--space", "layer", "--steps", 2, "--out",
                  tmp_path / "super", "--quiet").code == 0
    ran = prunus("search", tmp_path / "super", "--task", task(task_file), "--space", "small", "--out", tmp_path / "other", "--quiet")
    assert (ran.code, "was trained with" in ran.err) == (2, True)
    ran = prunus("finetune", encoder, "--task", task(task_file), "--space", "small", "--out", tmp_path / "no", "--quiet")
    assert (ran.code, "--space says nothing with --strategy standard" in ran.err) == (2, True)


def test_an_evaluation_that_fails_is_written_down_and_the_search_goes_on(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    """Of a decoder without any attention nothing can be extracted."""
    model = saved("llama", tmp_path / "llama", num_hidden_layers=2)
    ran = prunus("search", model, "--space", "sublayer", "--calibration", text_file, "--search-text", "self,samples=8,length=32",
                 "--evaluations", 16, "--searcher", "random", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert f"of them without values (why: {tmp_path / 'run'}" in "".join(ran.err.split("\n"))
    found = Front.load(tmp_path / "run")
    assert found.failed > 0
    assert all(any(point.candidate[::2]) for point in found.points)


def test_what_a_model_was_trained_on_is_not_searched_on_whatever_its_name(prunus: Prunus, encoder: Path, text_file: Path,
                                                                           checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """By content, over several trainings, of strategies without sub-networks too; and of text."""
    rows = [{"sentence": f"{place}: a {('pear', 'plum')[place % 2]} falls", "label": place % 2} for place in range(60)]
    file = tmp_path / "fruit.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prunus("finetune", encoder, "--task", task(file), "--steps", 1, "--out", tmp_path / "one", "--quiet").code == 0
    shutil.copy(file, tmp_path / "same.jsonl")
    other = f"{task(tmp_path / 'same.jsonl')},seed=7"
    words = ["--space", "small", "--quiet", "--evaluations", 3, "--out", tmp_path / "run"]
    ran = prunus("search", tmp_path / "one", "--task", other, *words)
    assert (ran.code, "of its validation split" in ran.err) == (2, True)
    assert prunus("search", tmp_path / "one", "--task", task(tmp_path / "same.jsonl"), *words).code == 0
    assert prunus("finetune", tmp_path / "one", "--task", other, "--steps", 1, "--out", tmp_path / "two", "--quiet").code == 0
    ran = prunus("search", tmp_path / "two", "--task", other, *words, "--overwrite")
    assert (ran.code, "of its validation split" in ran.err) == (2, True)
    text = ["finetune", checkpoint(), "--calibration", text_file, "--samples", 4, "--length", 32, "--steps", 1, "--quiet"]
    assert prunus(*text, "--out", tmp_path / "read").code == 0
    ran = prunus("search", tmp_path / "read", "--search-text", f"{text_file},samples=8,length=32", *words, "--overwrite")
    assert (ran.code, "training text (text.txt" in ran.err) == (2, True)
    (tmp_path / "read" / "seen.json").write_text("[1]")
    ran = prunus("search", tmp_path / "read", "--search-text", "self,samples=8,length=32", *words, "--overwrite")
    assert (ran.code, "seen.json: is damaged" in ran.err) == (2, True)
    assert Front.load(tmp_path / "run")  # none of these has taken it away


def test_a_search_takes_no_answers_drawn_at_random_and_no_examples_that_were_trained_on(prunus: Prunus, encoder: Path, task_file: Path,
                                                                                      tmp_path: Path) -> None:
    words = ["--task", task(task_file), "--space", "small", "--quiet", "--evaluations", 3, "--out"]
    ran = prunus("search", encoder, *words, tmp_path / "run")
    assert (ran.code, "has no trained head" in ran.err, "Train it first" in ran.err) == (2, True, True)
    assert prunus("finetune", encoder, *words[:4], "--strategy", "random", "--steps", 1, "--out", tmp_path / "super", "--quiet").code == 0
    ran = prunus("search", tmp_path / "super", "--task", f"{task(task_file)},seed=7", *words[2:], tmp_path / "run")
    assert (ran.code, "seed = 7, and the model was trained with 0" in ran.err, f"{task_file},seed=0" in ran.err) == (2, True, True)
    assert prunus("search", tmp_path / "super", *words, tmp_path / "run").code == 0
    ran = prunus("search", tmp_path / "super", *words[:-1], "--json", "--out", tmp_path / "again")
    assert json.loads(ran.out)["points"] == json.loads((tmp_path / "again" / "front.json").read_text())["points"]


def test_a_new_head_is_that_of_the_seed_and_an_old_super_network_is_overwritten(prunus: Prunus, encoder: Path, task_file: Path,
                                                                                tmp_path: Path) -> None:
    words = ["finetune", encoder, "--task", task(task_file), "--steps", 1, "--rate", 1e-9, "--quiet"]
    heads = []
    for seed in (0, 1):
        assert prunus(*words, "--seed", seed, "--out", tmp_path / str(seed)).code == 0
        heads.append(load(tmp_path / str(seed)).model.classifier.weight.detach())
    assert float((heads[0] - heads[1]).abs().max()) > 1e-3
    assert prunus(*words, "--strategy", "random", "--space", "layer", "--out", tmp_path / "0", "--overwrite").code == 0
    assert (tmp_path / "0" / "supernet.json").exists()
    assert prunus(*words, "--out", tmp_path / "0", "--overwrite").code == 0
    assert not (tmp_path / "0" / "supernet.json").exists()


def test_a_point_is_extracted_from_any_folder(prunus: Prunus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("llama", tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    assert prunus("search", "llama", "--space", "sublayer", "--search-text", "self,samples=8,length=32", "--evaluations", 6, "--out", "run",
                  "--quiet").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = prunus("extract", tmp_path / "run", "--out", "small", "--quiet")
    assert ran.code == 0, ran.err


def test_flags_that_say_nothing_and_folders_of_another_kind_are_refused(prunus: Prunus, headed: Path, task_file: Path, text_file: Path,
                                                                      tmp_path: Path) -> None:
    search = ["search", headed, "--task", task(task_file), "--space", "layer", "--evaluations", 4, "--quiet", "--out", tmp_path / "run"]
    train = ["finetune", headed, "--task", task(task_file), "--steps", 1, "--quiet", "--out"]
    for words, reason in (
            ([*search, "--calibration", text_file], "--calibration says nothing with --task"),
            ([*search, "--search-text", text_file], "--search-text says nothing with --task"),
            ([*search, "--batch", 3], "--batch says nothing without the objective latency"),
            ([*search, "--evaluations", "nan"], "--evaluations nan: expected a whole number"),
            ([*search, "--evaluations", 1.5], "--evaluations 1.5: expected a whole number"),
            ([*train, tmp_path / "no", "--samples", 3], "--samples says nothing with --task"),
            ([*train, tmp_path / "no", "--task", ""], "--task '': expected a corpus")):
        ran = prunus(*words)
        assert (ran.code, reason in ran.err) == (2, True), ran.err
    assert prunus(*search).code == 0
    assert prunus(*train, tmp_path / "tuned").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for words, reason in (
            ([*train, tmp_path / "run", "--overwrite"], "holds a search"),
            (["extract", tmp_path / "run", "--out", tmp_path / "run", "--overwrite"], "holds a search"),
            ([*search[:-1], tmp_path / "tuned", "--overwrite"], "holds a model"),
            ([*search, "--overwrite", "--task", f"{task(task_file)},length=1000"], "")):
        ran = prunus(*words)
        assert (ran.code, reason in ran.err) == (2, True), ran.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(("name", "change"), [
    ("trials.jsonl", lambda text: text + b"\xff\n"),
    ("trials.jsonl", lambda text: text.replace(b'"values": [', b'"values": [1.0, ')),
    ("front.json", lambda text: text.replace(b'"orders": {', b'"orders": [], "_": {')),
    ("front.json", lambda text: text.replace(b'"held_out": [', b'"held_out": [0.5, ')),
    ("front.json", lambda text: text.replace(b'"candidate": [', b'"candidate": [1, ', 1))])
def test_damaged_files_of_a_search_are_told_in_a_line(name: str, change: Callable[[bytes], bytes], prunus: Prunus, headed: Path,
                                                     task_file: Path, tmp_path: Path) -> None:
    words = ["search", headed, "--task", task(task_file), "--space", "layer", "--evaluations", 4, "--quiet", "--out", tmp_path / "run"]
    assert prunus(*words).code == 0
    file = tmp_path / "run" / name
    file.write_bytes(change(file.read_bytes()))
    ran = prunus(*words, "--resume") if name == "trials.jsonl" else prunus("front", tmp_path / "run", "--quiet")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert name in ran.err


def test_what_has_no_value_on_held_out_data_costs_no_search(prunus: Prunus, headed: Path, task_file: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A point, and a size of a baseline: the search is kept, and they are told apart from those with values."""
    from prunus import frontier
    from prunus.search import objectives

    valued, judged, looks = frontier._values, objectives.Judge.__call__, 6
    calls: list[Any] = []
    refused: list[None] = []

    def values(judge: Any, genome: Any, asked: Any) -> Any:
        calls.append(asked)
        if len(calls) > looks and asked.candidate != genome.largest and not any(one is None for one in calls):
            calls.append(None)
            raise CalibrationError("not finite on the test split")
        return valued(judge, genome, asked)

    def judge(self: Any, kept: Any, *others: Any) -> Any:
        if len(calls) > looks and not others and None not in refused:
            refused.append(None)
            raise RecipeError("no attention would be left")
        return judged(self, kept, *others)

    monkeypatch.setattr(frontier, "_values", values)
    monkeypatch.setattr(objectives.Judge, "__call__", judge)
    ran = prunus("search", headed, "--task", task(task_file), "--space", "medium,steps=3", "--evaluations", looks, "--searcher", "random",
                 "--baselines", "layerdrop", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    found = Front.load(tmp_path / "run")
    without = [point for point in found.points if not all(map(math.isfinite, point.held_out))]
    assert [point.dominated for point in without] == [True]
    assert len(found.baselines["layerdrop"]) == 2  # of three blocks
    assert prunus("front", tmp_path / "run", "--quiet").code == 0
    assert (tmp_path / "run" / "front.png").is_file()


def test_a_search_interrupted_at_its_first_look_goes_on(prunus: Prunus, headed: Path, task_file: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["search", headed, "--task", task(task_file), "--space", "small", "--evaluations", 4, "--baselines", "layerdrop", "--quiet",
             "--out", tmp_path / "run"]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunus.frontier._values", interrupted)
        ran = prunus(*words)
    assert ran.code == 130
    assert "Traceback" not in ran.err
    with monkeypatch.context() as patch:
        patch.setattr(Screen, "exploring", interrupted)
        assert prunus(*words, "--resume").code == 130
    assert (Front.load(tmp_path / "run").interrupted, Front.load(tmp_path / "run").baselines) == (True, {})
    assert prunus(*words, "--resume").code == 0
    assert set(Front.load(tmp_path / "run").baselines) == {"layerdrop"}


def test_search_text_is_as_long_as_is_said_and_enough_to_hold_some_out(prunus: Prunus, text_file: Path, tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama", num_hidden_layers=2)
    words = ["search", model, "--space", "small", "--evaluations", 3, "--quiet", "--length", 24, "--out", tmp_path / "run"]
    assert prunus(*words).code == 0
    assert all("sequences of 24" in line for line in Front.load(tmp_path / "run").protocols)
    assert prunus(*words, "--search-text", f"{text_file},samples=4,written=4", "--overwrite").code == 0
    assert all("and 4 sequences of 8 written by the model" in line for line in Front.load(tmp_path / "run").protocols)
    ran = prunus(*words, "--search-text", "self,samples=3", "--overwrite")
    assert (ran.code, "text.samples = 3: expected at least 4" in ran.err) == (2, True)
    shorter = prunus("search", model, *words[2:], "--dtype", "bfloat16", "--resume")
    assert (shorter.code, "holds the trials of another search" in shorter.err) == (2, True)
    cut = tmp_path / "cut"
    assert prunus("prune", model, "--sites", "sublayer", "--sparsity", 0.25, "--calibration", text_file, "--samples", 4, "--length", 24,
                  "--evaluate", "none", "--out", cut, "--quiet").code == 0
    ran = prunus("search", cut, *words[2:-1], tmp_path / "other")
    assert (ran.code, "do not all have the same branches. Use medium" in ran.err) == (2, True)
