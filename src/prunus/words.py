"""The gradient of word vectors, of the words of a batch alone: the table of a small model is most of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import embedding

__all__ = ["WordVectors"]


class WordVectors:
    """The table of a model's word vectors while it is trained.

    PyTorch makes a gradient as large as the table in every backward pass; here several passes through one batch add to that of the
    batch's words, and the table's own is filled in once, in memory that is kept.
    """

    def __init__(self, model: Any) -> None:
        table = model.get_input_embeddings()
        uses = sum(module is table or getattr(module, "weight", None) is table.weight for module in model.modules())
        apart = type(table) is nn.Embedding and uses == 1 and table.max_norm is None and not table.scale_grad_by_freq
        self._table: Any = table if apart and table.weight.requires_grad and "forward" not in table.__dict__ else None
        self._gradient: Tensor | None = None

    @contextmanager
    def of(self, tokens: Int[Tensor, "batch length"]) -> Iterator[None]:
        """Gradients of passes through these tokens reach the table when this ends; where the table has another use, as always."""
        if self._table is None:
            yield
            return
        table = self._table
        words, places = tokens.unique(return_inverse=True)
        vectors = table.weight.detach()[words].requires_grad_()

        def forward(given: Tensor) -> Tensor:
            known = given.shape == tokens.shape and torch.equal(given, tokens)
            found: Tensor = embedding(places, vectors) if known else embedding(given, table.weight, table.padding_idx)
            return found

        table.forward = forward
        try:
            yield
        finally:
            del table.forward
        if vectors.grad is not None:
            if table.padding_idx is not None:
                vectors.grad[words == table.padding_idx] = 0
            if table.weight.grad is None:
                self._gradient = torch.zeros_like(table.weight) if self._gradient is None else self._gradient.zero_()
                table.weight.grad = self._gradient
            table.weight.grad.index_add_(0, words, vectors.grad)
