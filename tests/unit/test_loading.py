"""A source becomes the model that was saved, or is refused in one line."""

import importlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus.anatomy import describe
from prunus.checkpoint import folder, save_model
from prunus.errors import LoadError, MissingExtra, RecipeError
from prunus.loading import Loaded, load, parse_dtype
from prunus.shape import reshape

from ..tiny import CAUSAL, FAMILIES, branches_of, tiny_model, tiny_tokenizer

Checkpoint = Callable[..., Path]


def refused(source: str | Path, reason: str, **settings: Any) -> None:
    """One line, that names the source and the reason. (transformers draws missing weights, hence the fork.)"""
    with torch.random.fork_rng(devices=[]), pytest.raises(LoadError, match=reason) as error:
        load(source, **settings)
    assert "\n" not in str(error.value)
    assert Path(source).name in str(error.value)


def assert_equal(found: Any, expected: Any) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_bit_for_bit_in_the_class_that_its_config_names(family: str, checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint(family))
    assert type(loaded.model).__name__ == FAMILIES[family][2]
    assert_equal(loaded.model, tiny_model(family))
    assert not loaded.model.training


def test_model_and_tokenizer_come_as_a_pair(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    model, tokenizer = load(str(source))
    assert model.config.model_type == "llama"
    assert tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]
    assert isinstance(load(source), Loaded)
    assert load(source).source == str(source)


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").tokenizer is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_checkpoint_s_dtype_is_kept(dtype: torch.dtype, checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint(dtype=dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert_equal(loaded.model, tiny_model(dtype=dtype))


def test_a_dtype_that_is_asked_for_is_given(checkpoint: Checkpoint) -> None:
    assert load(checkpoint(), dtype="bf16").model.dtype == torch.bfloat16
    assert load(checkpoint(), dtype="auto").model.dtype == torch.float32
    assert parse_dtype("fp16") == parse_dtype("float16") == torch.float16
    assert parse_dtype(None) is None
    with pytest.raises(RecipeError, match=r"dtype 'int8' is unknown\. Known: auto, float32"):
        parse_dtype("int8")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_are_put_together(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal(load(tmp_path).model, model)


@pytest.mark.parametrize("family", CAUSAL)
def test_tied_embeddings_stay_one_tensor(family: str, checkpoint: Checkpoint) -> None:
    source = checkpoint(family, tie_word_embeddings=True)
    model = load(source).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_equal(model, tiny_model(family, tie_word_embeddings=True))


@pytest.mark.parametrize(("kind", "expected"), [
    ("BertForSequenceClassification", "BertForSequenceClassification"), ("BertModel", "BertModel"),
    ("BertForMaskedLM", "BertForMaskedLM"),
])
def test_an_encoder_s_class_is_chosen_from_its_config(kind: str, expected: str, tmp_path: Path) -> None:
    import transformers

    with torch.random.fork_rng(devices=[]):
        getattr(transformers, kind)(tiny_model("bert").config).save_pretrained(tmp_path)
    assert type(load(tmp_path).model).__name__ == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_for_labels_is_drawn_by_the_seed_and_the_body_is_the_checkpoint_s(family: str, checkpoint: Checkpoint) -> None:
    source = checkpoint(family)
    loaded, again, other = (load(source, labels=("no", "maybe", "yes"), seed=seed) for seed in (0, 0, 1))
    kind = type(loaded.model).__name__
    assert kind.endswith("ForSequenceClassification")
    assert loaded.new_head
    assert loaded.model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3)
    assert_equal(loaded.model, again.model)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(loaded.model.parameters(), other.model.parameters(), strict=True))
    base, names = loaded.model.base_model.state_dict(), {site.name for site in describe(loaded.model).sites()}
    assert all(name.startswith(f"{loaded.model.base_model_prefix}.") for name in names)
    assert len(names) == len(describe(tiny_model(family)).sites())
    for name, value in tiny_model(family).base_model.state_dict().items():
        assert torch.equal(base[name], value), name


def test_a_model_with_a_head_is_saved_and_loaded_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = load(checkpoint("bert"), labels=("no", "yes"), seed=3)
    with folder(tmp_path / "saved") as draft:
        save_model(first.model, first.tokenizer, draft)
    for again in (load(tmp_path / "saved"), load(tmp_path / "saved", labels=("no", "yes"), seed=5)):
        assert not again.new_head
        assert again.model.config.label2id == {"no": 0, "yes": 1}
        assert_equal(again.model, first.model)
    wider = load(tmp_path / "saved", labels=("a", "b", "c"))
    assert wider.new_head
    assert wider.model.config.num_labels == 3
    number = load(tmp_path / "saved", labels=("score",))
    assert (number.model.config.num_labels, number.model.config.problem_type) == (1, "regression")


@pytest.mark.parametrize(("asked", "known"), [
    (("0", "1"), ("no", "yes")), (("yes", "no"), ("no", "yes")), (("bad", "good"), ("bad", "good")), (("0", "1", "2"), ("0", "1", "2")),
], ids=["numbers", "another order", "other words", "more"])
def test_a_checkpoint_keeps_its_own_words_where_they_may_be_the_labels(asked: tuple[str, ...], known: tuple[str, ...],
                                                                        checkpoint: Checkpoint, tmp_path: Path) -> None:
    load(checkpoint("bert"), labels=("no", "yes")).model.save_pretrained(tmp_path / "saved")
    assert tuple(load(tmp_path / "saved", labels=asked).model.config.id2label.values()) == known


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_a_cut_model_keeps_its_head_and_gets_another(family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = load(checkpoint(family), labels=("no", "yes"))
    shape = {"silent": {part.module: part.gives for part in branches_of(first.model)[2].silent}}
    reshape(first.model, shape)
    first.model.config.pruned = shape
    with folder(tmp_path / "saved") as draft:
        assert save_model(first.model, first.tokenizer, draft)
    tokens = torch.tensor([[5, 6, 7]])
    for labels, new in (((), False), (("no", "yes"), False), (("a", "b", "c"), True)):
        again = load(tmp_path / "saved", labels=labels)
        assert (again.new_head, type(again.model).__name__) == (new, type(first.model).__name__)
        assert len(branches_of(again.model)) == 3
        hidden = again.model.base_model(input_ids=tokens)[0]
        assert torch.allclose(hidden, first.model.base_model(input_ids=tokens)[0], atol=1e-6)
        if not new:
            assert torch.allclose(again.model(input_ids=tokens).logits, first.model(input_ids=tokens).logits, atol=1e-6)


def test_a_body_that_is_not_whole_is_refused_with_a_head_too(checkpoint: Checkpoint) -> None:
    source = checkpoint("bert")
    weights = load_file(source / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    refused(source, r"1 weights are missing .* first bert\.encoder\.layer\.0\.output\.dense\.weight", labels=("a", "b"))


def test_a_package_s_folder_is_found_without_importing_the_package(checkpoint: Checkpoint, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "fruit_stand"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    checkpoint().rename(package / "weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    assert_equal(load("package:fruit_stand").model, tiny_model())


def test_a_package_without_a_model_or_that_is_missing_is_refused() -> None:
    refused("package:fruit_stand_that_is_not_there", r"no package .* is installed\. Try: pip install .*fruit-stand-that-is-not-there")
    refused("package:json", "holds neither a .gguf file nor a folder with safetensors")
    refused("package:", "no package")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere.gguf", "a/b/c", "~/nowhere-at-all", "no where"])
def test_nothing_there_is_refused(source: str) -> None:
    refused(source, "no such file or folder")


@pytest.mark.parametrize("source", ["prunus-nobody/nothing-here", "nowhere"])
def test_a_hub_id_that_cannot_be_had_is_refused(source: str) -> None:
    refused(source, "the hub could not be reached or has no such model")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    refused(tmp_path / "model.bin", "expected a folder, a hub id, a .gguf file or package:NAME, found a .bin file")


def test_a_broken_gguf_is_refused_or_needs_its_extra(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises((LoadError, MissingExtra), match=r"damaged or truncated GGUF file|prunus\[gguf\]") as error:
        load(tmp_path / "model.gguf")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*/config.json"))


def test_a_folder_that_is_no_model_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    refused(tmp_path, "not a model folder: no config.json in it, found nothing")
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path, r"no config\.json in it, found notes\.txt")


@pytest.mark.parametrize(("content", "reason"), [
    ("{", "config.json is damaged"), ("[]", "names no model_type"), ("{}", "names no model_type"),
    (json.dumps({"model_type": "prunus-unheard-of"}), "unknown to transformers. Known to Prunus: bert, "),
    (json.dumps({"model_type": "mamba"}), "architecture 'mamba' is unknown. Known: bert, "),
], ids=["no JSON", "no table", "empty", "unheard of", "not ours"])
def test_a_config_that_names_no_known_architecture_is_refused(content: str, reason: str, checkpoint: Checkpoint) -> None:
    source = checkpoint()
    (source / "config.json").write_text(content)
    refused(source, reason)


def test_pickles_are_refused_unopened(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo pwned'\ntR.")
    refused(source, r"its weights are pickles \(pytorch_model\.bin\), which can run code")


def test_pickles_beside_safetensors_are_ignored(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo pwned'\ntR.")
    assert_equal(load(source).model, tiny_model())


def test_a_folder_without_weights_is_refused(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    (source / "model.safetensors").unlink()
    refused(source, r"no \.safetensors file")


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:-100], lambda whole: whole[:20], lambda whole: b"", lambda whole: struct.pack("<Q", 2**60) + whole[8:],
    lambda whole: bytes(64) + whole[64:],
], ids=["end cut off", "header cut off", "empty", "absurd header", "overwritten"])
def test_a_damaged_safetensors_file_is_refused_by_file(damage: Any, checkpoint: Checkpoint) -> None:
    source = checkpoint()
    file = source / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    refused(source, r"model\.safetensors: a damaged or truncated safetensors file")


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="30KB")
    first = sorted(tmp_path.glob("*.safetensors"))[1]
    first.unlink()
    refused(tmp_path, f"1 of .* shards are missing, first {first.name}")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_of_shards_is_refused(content: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="30KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(tmp_path, r"model\.safetensors\.index\.json")


def test_missing_weights_are_refused_by_name_rather_than_drawn_at_random(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, r"1 weights are missing or of another shape, first model\.layers\.1\.mlp\.up_proj\.weight")


def test_a_weight_of_another_shape_is_refused(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 4)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, "up_proj")


def test_code_that_comes_with_a_model_is_not_run_unless_asked(checkpoint: Checkpoint) -> None:
    source = checkpoint()
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "fruit", "auto_map": {"AutoConfig": "code.Fruit", "AutoModelForCausalLM": "code.FruitLM"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "code.py").write_text("raise SystemExit('ran')")
    refused(source, "--trust-remote-code")
