"""GGUF files: llama.cpp says what PyTorch says, whatever was left out; and what it would say wrongly is repaired or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prunus.anatomy import describe
from prunus.errors import ExportError, LoadError, RecipeError
from prunus.export.gguf import GGUF
from prunus.loading import Loaded, load
from prunus.surgery.cut import cut, skip

from ..llamacpp import continued
from ..tiny import WORDS, tiny_model, tiny_tokenizer

PROMPT = [3, 70, 80, 90, 100, 20, 33]
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16, "num_attention_heads": 4,
                         "num_key_value_heads": 2}


def tokenizer() -> Any:
    """Bytes, and one merge, without which llama.cpp takes a vocabulary for damaged."""
    words = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**words, "<s>": 256, "</s>": 257, "<a>": 258, "Ġt": 259}, merges=[("Ġ", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def uneven(model: Any) -> None:
    sites = describe(model).sites("channel")
    cut(model, describe(model), {site.name: torch.arange(site.count) % (2 + place) != 0 for place, site in enumerate(sites)})


def without(*places: int) -> Any:
    def change(model: Any) -> None:
        names = [site.name for site in describe(model).sites("sublayer")]
        skip(model, describe(model), [names[place] for place in places])
    return change


CASES = {
    "dense": lambda model: None, "uneven": uneven, "first attention": without(0), "first MLP": without(1), "an attention": without(2),
    "an MLP": without(3), "last attention": without(6), "last MLP": without(7), "first block": without(0, 1),
    "a block and a half": without(2, 3, 5), "both of a kind in turn": without(1, 4),
}


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_what_pytorch_says(case: str, family: str, tmp_path: Path) -> None:
    """At the prompt's end and at every token after it, for all words; letters only, so that the text is never cut in a character."""
    model = tiny_model(family, **SHAPE, tie_word_embeddings=case == "dense", **({"sliding_window": None} if family == "mistral" else {}))
    CASES[case](model)
    GGUF(dtype="F32").save(Loaded(model, tokenizer(), "tiny"), tmp_path / "model.gguf")
    said = continued(tmp_path / "model.gguf", PROMPT, 8, n_probs=WORDS, grammar="root ::= [a-zA-Z0-9]+")
    tokens = [word["id"] for word in said]
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([PROMPT + tokens])).logits[0].log_softmax(-1)
    assert len(tokens) == 8
    for place, word in enumerate(said, len(PROMPT) - 1):
        assert len(word["top_logprobs"]) >= WORDS - 2
        assert max(abs(float(ours[place, other["id"]]) - other["logprob"]) for other in word["top_logprobs"]) < 1e-3


def test_embeddings_may_have_more_rows_than_there_are_words(tmp_path: Path) -> None:
    model = tiny_model(**SHAPE, vocab_size=320)
    GGUF(dtype="F32").save(Loaded(model, tokenizer(), "tiny"), tmp_path / "model.gguf")
    said = [word["id"] for word in continued(tmp_path / "model.gguf", PROMPT, 4, n_probs=4, grammar="root ::= [a-zA-Z0-9]+")]
    assert len(said) == 4
    assert load(tmp_path / "model.gguf").model.get_input_embeddings().weight.shape == (320, 64)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.zeros(200, 64)))
    with pytest.raises(RecipeError, match="gives token 259, and the model has embeddings for 200"):
        GGUF().save(Loaded(model, tokenizer(), "tiny"), tmp_path / "other.gguf")


@pytest.mark.parametrize(("dtype", "bits"), [("F32", 32), ("F16", 16), ("Q8_0", 8.5), ("Q5_0", 5.5), ("Q4_0", 4.5)])
def test_a_file_is_as_large_as_its_weights(dtype: Any, bits: float, tmp_path: Path) -> None:
    model = tiny_model(**SHAPE)
    GGUF(dtype=dtype).save(Loaded(model, None, "tiny"), tmp_path / "model.gguf")
    size = (tmp_path / "model.gguf").stat().st_size
    expected = bits / 8 * sum(parameter.numel() for parameter in model.parameters())
    assert expected < size < expected + 20_000


def test_transformers_reads_a_plain_file_back(tmp_path: Path) -> None:
    model = tiny_model(**SHAPE)
    GGUF(dtype="F32").save(Loaded(model, tokenizer(), "tiny"), tmp_path / "model.gguf")
    again: Any = load(tmp_path / "model.gguf").model
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        assert (again(input_ids=tokens).logits - model(input_ids=tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize(("dtype", "steps"), [("Q8_0", 127), ("Q5_0", 16), ("Q4_0", 8)])
def test_few_bits_are_read_back_within_a_step_and_zeros_exactly(dtype: Any, steps: int, tmp_path: Path) -> None:
    """A step is the largest weight of 32 over the codes on one side; the largest of the other sign is half a step further."""
    model = tiny_model(**SHAPE)
    for layer in model.model.layers:
        for projection in (layer.self_attn.v_proj, layer.mlp.down_proj):
            projection.weight.data[:, ::2] = 0
    GGUF(dtype=dtype).save(Loaded(model, tokenizer(), "tiny"), tmp_path / "model.gguf")
    loaded = load(tmp_path / "model.gguf")
    assert (loaded.stored, loaded.quantised) == (f"GGUF {dtype}", False)
    again = loaded.model.state_dict()
    for name, weight in model.state_dict().items():
        if weight.dim() == 2:
            blocks, theirs = (value.reshape(-1, 32) for value in (weight, again[name]))
            step = blocks.abs().amax(1, keepdim=True) / steps
            assert ((theirs - blocks).abs() <= 1.01 * step).all(), name
            assert (theirs[blocks == 0] == 0).all(), name


@pytest.mark.parametrize("dtype", ["Q8_0", "Q5_0", "Q4_0"])
def test_llama_cpp_says_of_few_bits_what_pytorch_says_of_the_same_file(dtype: Any, tmp_path: Path) -> None:
    """llama.cpp rounds activations to 8 bits there, so log-probabilities agree to a tenth in the mean; they are nearer to those of the file
    as PyTorch reads it than to those of the model before."""
    model = tiny_model(**SHAPE)
    GGUF(dtype=dtype).save(Loaded(model, tokenizer(), "tiny"), tmp_path / "model.gguf")
    said = continued(tmp_path / "model.gguf", PROMPT, 1, n_probs=WORDS, grammar="root ::= [a-zA-Z0-9]+")
    with torch.no_grad():
        ours = load(tmp_path / "model.gguf").model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
        other = model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    gaps = [abs(float(values[word["id"]]) - word["logprob"]) for values in (ours, other) for word in said[0]["top_logprobs"]]
    half = len(gaps) // 2
    assert sum(gaps[:half]) / half < 0.1
    assert dtype == "Q8_0" or sum(gaps[:half]) < sum(gaps[half:]) / 2  # 8 bits of a weight change less than 8 bits of an activation


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    GGUF(dtype="F32").save(Loaded(tiny_model(**SHAPE), tokenizer(), "tiny"), file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(LoadError):
        load(file)


@pytest.mark.parametrize(("model", "words", "settings", "reason"), [
    (lambda: tiny_model("gpt2"), None, {}, "knows llama, mistral, not 'gpt2'"),
    (lambda: tiny_model("mistral"), None, {}, "a sliding window"),
    (lambda: tiny_model(attention_bias=True), None, {}, "matrices have biases"),
    (lambda: tiny_model(intermediate_size=40), None, {"dtype": "Q8_0"}, "40 channels, expected a multiple of 32"),
    (lambda: tiny_model(intermediate_size=40), None, {"dtype": "Q4_0"}, "Q4_0: the MLP of block 0 has 40 channels"),
    (tiny_model, tiny_tokenizer, {}, "not byte-level BPE, with merges, as llama.cpp knows it"),
])
def test_what_it_cannot_say_is_refused_before_a_byte_is_written(model: Any, words: Any, settings: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=reason):
        GGUF(**settings).save(Loaded(model(), words() if words else None, "tiny"), tmp_path / "new" / "model.gguf")
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(ExportError, match=r"exists\. Name another file or say --overwrite"):
        GGUF().save(Loaded(tiny_model(), None, "tiny"), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"
