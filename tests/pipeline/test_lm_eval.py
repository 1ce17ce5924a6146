"""lm-evaluation-harness opens what is saved, and finds in it what the model in memory says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.export.huggingface import save
from prunus.loading import Loaded

from ..tiny import CAUSAL, tiny_tokenizer, uneven

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")
PAIRS = [("A cherry is", " a fruit."), ("A plum", " is a drupe, and so is a peach."), ("", "stones")]


@torch.no_grad()
def loglikelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Of the answer's tokens after the context's, or after BOS where there is no context, as the harness has it."""
    before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    after = tokenizer(answer)["input_ids"]
    logits = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    return float(logits[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None]).sum())


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, context: str, count: int) -> str:
    tokens = torch.tensor([tokenizer(context)["input_ids"]])
    for _ in range(count):
        tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], 1)
    return str(tokenizer.decode(tokens[0, -count:]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["huggingface", "padded"])
@pytest.mark.parametrize("family", CAUSAL)
def test_the_harness_finds_what_the_model_in_memory_says(family: str, form: str, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = uneven(family), tiny_tokenizer()
    save(Loaded(model, tokenizer, "tiny"), tmp_path / "out", form)
    ours = form == "huggingface"
    assert (tmp_path / "out" / "modeling_pruned.py").is_file() == ours
    harness = HFLM(pretrained=str(tmp_path / "out"), trust_remote_code=ours, device="cpu", batch_size=2, dtype="float32")
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    found = [value for value, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    assert found == pytest.approx([loglikelihood(model, tokenizer, *pair) for pair in PAIRS], abs=1e-4)
    settings = {"until": [], "max_gen_toks": 8, "do_sample": False}
    said, = harness.generate_until([Instance("generate_until", {}, ("A cherry is", settings), 0)], disable_tqdm=True)
    assert said == greedy(model, tokenizer, "A cherry is", 8)
