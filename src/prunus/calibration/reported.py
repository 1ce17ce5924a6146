"""The text that a number is measured on: which split, which windows of it, and how a protocol says so."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..errors import RecipeError
from .corpus import Text, has_split, read, windows
from .sample import check_length, check_tokenizer, check_words, how_read, with_bos

__all__ = ["beginning_of", "check_windows", "report_text", "windows_of"]


def check_windows(length: int, tokens: int, where: str) -> None:
    """Refuse windows that predict nothing, or a text shorter than one of them. Raises RecipeError."""
    if length < 2:
        raise RecipeError(f"{where}: length = {length}: expected at least 2 tokens.")
    if tokens and tokens < length:
        raise RecipeError(f"{where}: tokens = {tokens} is less than one window of {length}.")


def report_text(corpus: str, split: str | None) -> Text:
    """A split of a corpus; None: test, or validation where there is no test. Raises CorpusError."""
    return read(corpus, split or ("test" if has_split(corpus, "test") else "validation"))


def beginning_of(text: Text, tokens: int) -> Text:
    """As much of a text as is measured, and some more: 8 characters per token; with 0 tokens all of it."""
    return text.beginning(8 * tokens) if tokens else text


def windows_of(text: Text, tokenizer: Any, model: Any, length: int, tokens: int, bos: bool | None,
               where: str, stored: str = "") -> tuple[Int[Tensor, "windows length"], str]:
    """The first windows of `length` tokens that do not overlap, `tokens` in all (0: of the whole text), and what a protocol says of
    them. Raises RecipeError when the model cannot read them, CorpusError when the text is too short."""
    check_length(model, length, f"{where}.length")
    check_tokenizer(tokenizer, where)
    begun = with_bos(tokenizer, bos)
    table = windows(text, tokenizer, length, tokens // length if tokens else None, bos=begun)
    check_words(model, int(table.max()), where)
    start = "BOS in every window" if begun else "no BOS"
    cut = f"first {table.numel()} tokens" if tokens else "full stride"
    return table, (f"text sha256 {text.digest}, {text.joined}, {cut}, {len(table)} windows of {length}, stride {length}, {start}, "
                   f"{how_read(model, tokenizer, stored)}")
