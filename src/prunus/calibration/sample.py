"""Which text calibrates, and how much of it."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..comparison import STORED
from ..errors import RecipeError
from ..traits import predicts_next
from .corpus import Text, read, windows
from .pair import Watch, unwatched
from .writing import written

__all__ = ["Calibration", "check_length", "check_tokenizer", "check_words", "how_read", "with_bos", "words_of"]


@dataclass(frozen=True)
class Calibration:
    """`samples` sequences of `length` tokens from a corpus."""

    corpus: str = "builtin"  # a name (builtin, c4, wikitext2, ptb, …), a .txt or .jsonl file, or "self"
    split: str = "train"  # train, validation or test
    samples: int = 128  # sequences; fewer are used when the text has no more
    length: int = 512  # tokens per sequence
    bos: bool | None = None  # begin every sequence with BOS; None: as the tokenizer does by itself
    written: int = 0  # sequences beside them that the model writes itself, if it is one that can

    def __post_init__(self) -> None:
        if self.samples < 1 or self.length < 2 or self.written < 0:
            raise RecipeError(f"calibration: samples = {self.samples}, length = {self.length}, written = {self.written}: "
                              "expected at least 1 sequence of at least 2 tokens, and 0 or more that are written.")
        if self.written and self.corpus == "self":
            raise RecipeError(f"calibration: corpus 'self' and written = {self.written}: the model writes it all already. Use samples.")

    def text(self) -> Text | None:
        """The text it draws from; None when the model writes it itself."""
        return None if self.corpus == "self" else read(self.corpus, self.split)

    def tokens(self, tokenizer: Any, model: nn.Module, seed: int, where: str = "calibration",
               watch: Watch = unwatched) -> Int[Tensor, "sequences length"]:
        """The sequences, chosen by `seed`: those of the text, and behind them those that the model writes. Raises CorpusError, or
        RecipeError when the model cannot take the length."""
        return torch.cat([self.read(tokenizer, model, seed, where), self.write(tokenizer, model, seed, watch)])

    def read(self, tokenizer: Any, model: nn.Module, seed: int, where: str = "calibration") -> Int[Tensor, "sequences length"]:
        """Those of the text alone; none when the model writes them all. Raises as `tokens`."""
        check_length(model, self.length, f"{where}.length")
        check_tokenizer(tokenizer, where)
        text = self.text()
        if text is None:
            return torch.empty(0, self.length).long()
        found = windows(text, tokenizer, self.length, self.samples, seed, with_bos(tokenizer, self.bos))
        check_words(model, int(found.max()), where)
        return found

    def write(self, tokenizer: Any, model: nn.Module, seed: int, watch: Watch = unwatched) -> Int[Tensor, "sequences length"]:
        """Those that the model writes alone. Raises as `tokens`."""
        count = self.writes(model)
        return written(tokenizer, model, count, self.length, seed, watch) if count else torch.empty(0, self.length).long()

    def writes(self, model: nn.Module) -> int:
        """Sequences that the model writes: beside a text none where it cannot."""
        if self.corpus == "self":
            return self.samples
        return self.written if predicts_next(model) else 0


def with_bos(tokenizer: Any, asked: bool | None) -> bool:
    """Whether windows begin with BOS: as asked, or as the tokenizer does for any text."""
    start = getattr(tokenizer, "bos_token_id", None)
    if asked is None:
        return start is not None and tokenizer("a")["input_ids"][:1] == [start]
    if asked and start is None:
        raise RecipeError("bos = true: the tokenizer has no BOS token.")
    return asked


def check_length(model: nn.Module, length: int, where: str) -> None:
    """Refuse sequences longer than the model's positions. Raises RecipeError."""
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and config.model_type == "roberta":
        limit -= config.pad_token_id + 1  # its positions start after the padding index
    if limit is not None and length > limit:
        raise RecipeError(f"{where} = {length}: the model takes at most {limit} tokens. Use a shorter length.")


def check_tokenizer(tokenizer: Any, where: str) -> None:
    """Refuse to read text without one. Raises RecipeError."""
    if tokenizer is None:
        raise RecipeError(f"{where}: text needs a tokenizer, and this model comes with none that transformers can read.")


def check_words(model: nn.Module, largest: int, where: str) -> None:
    """Refuse tokens that the model does not know. Raises RecipeError."""
    embeddings: Any = model
    known = embeddings.get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise RecipeError(f"{where}: the tokenizer gives token {largest}, and the model has embeddings for {known} tokens, from 0. "
                          "They are not of one model: look at the files of the tokenizer.")


def how_read(model: Any, tokenizer: Any, stored: str = "") -> str:
    """The dtype of the model, how its weights were stored before it was loaded, and what its tokenizer knows, for a protocol."""
    weights = f", {STORED}{stored}" if stored else ""
    return f"{str(model.dtype).removeprefix('torch.')}{weights}, {words_of(tokenizer)}"


def words_of(tokenizer: Any) -> str:
    """What a tokenizer knows, for a protocol: the size and a hash of its vocabulary."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return f"tokenizer of {len(words)} words {hashlib.sha256(repr(words).encode()).hexdigest()[:8]}"
