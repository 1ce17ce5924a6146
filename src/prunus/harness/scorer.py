"""A model in memory that answers what the harness asks: as the harness's own class does, with fewer passes where they give the same."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ..calibration.readout import head_runs_alone, logits_of, positions_at_once
from ..calibration.sample import check_words
from .catalogue import quiet

__all__ = ["Scorer"]

_TOKENS = 512  # per pass on a CPU, whose cache holds no more; 16 times as many elsewhere
_CLOSE = 1e-3  # log-likelihoods that differ by less are the same, of passes of one token or several, in float32

Request = tuple[Any, list[int], list[int]]  # the texts, and the tokens of the context and of its continuation
Found = tuple[float, bool]  # the log-likelihood of a continuation, and whether it is what the model would say


class _Row(NamedTuple):
    """One continuation, and where its answer belongs."""

    place: int
    context: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.context) + len(self.rest)


class Scorer(HFLM):
    """The model and its tokenizer, which stay as they are.

    Texts become tokens, long ones are cut, and answers are written as `lm_eval.models.huggingface.HFLM` does it. In float32 the
    log-likelihoods of continuations take fewer passes: a context that several continuations share is read once, and of logits only those
    are computed that are asked for. In other dtypes sums are rounded by where numbers lie, and every pass is HFLM's own.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int, tell: Callable[[int], None]) -> None:
        with quiet():
            super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch)
        self._tell, self.done = lambda done: None, 0  # questions that are answered
        self.cut = 0  # texts of which the model reads the end alone
        self._together = _TOKENS if self.device.type == "cpu" else 16 * _TOKENS
        self.own_passes = model.dtype == torch.float32 and head_runs_alone(model)
        self._shares = self.own_passes and self._agrees()
        self._tell, self.done = tell, 0

    def _count(self, rows: int) -> None:
        self.done += rows
        self._tell(self.done)

    def tok_encode(self, *texts: Any, **named: Any) -> Any:
        """Tokens of texts. Raises RecipeError where the model does not know one."""
        found = super().tok_encode(*texts, **named)
        rows = found if found and isinstance(found[0], list) else [found]
        check_words(self.model, max((token for row in rows for token in row), default=0), "tasks")
        return found

    def tok_batch_encode(self, strings: Any, *others: Any, left_truncate_len: int | None = None, **named: Any) -> Any:
        found = super().tok_batch_encode(strings, *others, left_truncate_len=left_truncate_len, **named)
        if left_truncate_len and found[0].shape[1] == left_truncate_len:  # the longest may have been longer
            self.cut += sum(len(self.tok_encode(text)) > left_truncate_len for text in strings)
        return found

    def _model_call(self, inps: Tensor, *others: Any, **named: Any) -> Any:
        found = super()._model_call(inps, *others, **named)
        self._count(len(inps))
        return found

    def _model_generate(self, context: Tensor, *others: Any, **named: Any) -> Any:
        found = super()._model_generate(context, *others, **named)
        self._count(len(context))
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None) -> list[Found]:
        self.cut += sum(len(context) + len(rest) > self.max_length + 1 for _, context, rest in requests)
        if not self.own_passes:
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs))
        found: dict[int, Found] = {}
        rows = [_Row(place, tuple(context), tuple(rest)) for place, (_, context, rest) in enumerate(requests)]
        long = [row for row in rows if row.size > self.max_length + 1]  # which HFLM cuts, each by itself
        if long:
            answers = super()._loglikelihood_tokens([requests[row.place] for row in long], disable_tqdm=True)
            found |= {row.place: answer for row, answer in zip(long, answers, strict=True)}
        groups: dict[tuple[int, ...], list[_Row]] = defaultdict(list)
        for row in rows:
            if row.size <= self.max_length + 1:
                groups[row.context].append(row)
        together = {context for context, group in groups.items() if self._shares and self._is_worth_it(group)}
        alone = [row for context, group in groups.items() if context not in together for row in group]
        with torch.no_grad():
            for part in (self._alone(alone), self._shared([groups[context] for context in groups if context in together])):
                for answers in part:
                    found |= answers
                    self._count(len(answers))
        return [found[place] for place in range(len(requests))]

    def _is_worth_it(self, group: Sequence[_Row]) -> bool:
        """Whether reading the context once spares a quarter of the tokens at least, and the model's window holds all that is read."""
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        if window and max(row.size for row in group) > window:
            return False
        return 4 * len(group[0].context) * (len(group) - 1) >= sum(row.size for row in group)

    def _alone(self, rows: Sequence[_Row]) -> Iterator[dict[int, Found]]:
        """Every continuation behind its own context, a few of like length together."""
        for part in _parts(sorted(rows, key=lambda row: -row.size), lambda row: row.size, self._together):
            tokens = self._table([(row.context + row.rest)[:-1] for row in part])
            hidden = self.model.base_model(input_ids=tokens, use_cache=False)[0]
            where = [(index, len(row.context) - 1 + step) for index, row in enumerate(part) for step in range(len(row.rest))]
            yield self._gathered(part, *self._read(hidden[tuple(torch.tensor(where).T)], [token for row in part for token in row.rest]))

    def _shared(self, groups: Sequence[Sequence[_Row]]) -> Iterator[dict[int, Found]]:
        """Every context once; then its continuations, which find in the cache what was read before."""
        order = sorted(groups, key=lambda group: -len(group[0].context))
        for part in _parts(order, lambda group: len(group) * max(row.size for row in group), self._together):
            rows = [row for group in part for row in group]
            tokens = self._table([group[0].context for group in part])
            output = self.model.base_model(input_ids=tokens, use_cache=True)
            owner = [index for index, group in enumerate(part) for _ in group]
            last = torch.tensor([len(row.context) - 1 for row in rows])
            first = self._read(output[0][torch.tensor(owner), last], [row.rest[0] for row in rows])
            more = [index for index, row in enumerate(rows) if len(row.rest) > 1]
            values, said = [[value] for value in first[0].tolist()], [[same] for same in first[1].tolist()]
            if more:
                output.past_key_values.batch_select_indices(torch.tensor([owner[index] for index in more], device=self.device))
                later = self._behind(output.past_key_values, [rows[index] for index in more], tokens.shape[1])
                owners = [place for place in more for _ in rows[place].rest[1:]]
                for place, value, same in zip(owners, later[0].tolist(), later[1].tolist(), strict=True):
                    values[place].append(value)
                    said[place].append(same)
            yield {row.place: (float(torch.tensor(value).sum()), all(same)) for row, value, same in zip(rows, values, said, strict=True)}

    def _behind(self, cache: Any, rows: Sequence[_Row], width: int) -> tuple[Tensor, Tensor]:
        """What follows the first token of every continuation, when contexts of at most `width` tokens are in the cache."""
        tokens = self._table([row.rest[:-1] for row in rows])
        seen = torch.zeros(len(rows), width + tokens.shape[1], dtype=torch.long)
        for index, row in enumerate(rows):
            seen[index, : len(row.context)] = 1
            seen[index, width : width + len(row.rest) - 1] = 1
        places = torch.tensor([len(row.context) for row in rows])[:, None] + torch.arange(tokens.shape[1])
        hidden = self.model.base_model(input_ids=tokens, attention_mask=seen.to(self.device), position_ids=places.to(self.device),
                                       past_key_values=cache, use_cache=True)[0]
        where = [(index, step) for index, row in enumerate(rows) for step in range(len(row.rest) - 1)]
        return self._read(hidden[tuple(torch.tensor(where).T)], [token for row in rows for token in row.rest[1:]])

    def _read(self, hidden: Float[Tensor, "tokens width"],
              targets: Sequence[int]) -> tuple[Float[Tensor, "tokens"], Bool[Tensor, "tokens"]]:
        """The log-likelihood of what comes next, and whether it is the most probable token."""
        values, same = [], []
        step = positions_at_once(self.model)
        wanted = torch.tensor(targets, device=hidden.device)
        for start in range(0, len(wanted), step):
            logits, next_ones = logits_of(self.model, hidden[None, start : start + step]), wanted[start : start + step, None]
            assert logits is not None  # as was seen at the beginning
            values.append((logits[0].gather(1, next_ones) - logits[0].logsumexp(1, keepdim=True))[:, 0])
            same.append(logits[0].argmax(1) == next_ones[:, 0])
        return torch.cat(values).cpu(), torch.cat(same).cpu()

    def _gathered(self, rows: Sequence[_Row], values: Tensor, same: Tensor) -> dict[int, Found]:
        sizes = [len(row.rest) for row in rows]
        return {row.place: (float(value.sum()), bool(said.all()))
                for row, value, said in zip(rows, values.split(sizes), same.split(sizes), strict=True)}

    def _table(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows tokens"]:
        """Filled up behind, where nobody looks."""
        width = max(map(len, rows))
        return torch.tensor([[*row, *(0,) * (width - len(row))] for row in rows], dtype=torch.long, device=self.device)

    def _agrees(self) -> bool:
        """Whether the model finds in its cache what it would have read: seen on two contexts of unequal length."""
        words = min(self.config.get_text_config().vocab_size, 50)
        contexts = tuple(tuple((7 * place + size) % words for place in range(size)) for size in (9, 5))
        rows = [_Row(place, contexts[place // 2], tuple((place + step) % words for step in range(1 + place))) for place in range(4)]
        with torch.no_grad():
            alone = {place: value for answers in self._alone(rows) for place, (value, _) in answers.items()}
            try:
                shared = {place: value for answers in self._shared([rows[:2], rows[2:]]) for place, (value, _) in answers.items()}
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):  # a cache of another kind
                return False
        return all(abs(shared[place] - value) < _CLOSE for place, value in alone.items())


def _parts(order: Sequence[Any], size: Callable[[Any], int], most: int) -> Iterator[list[Any]]:
    """As many at a time as have at most so many tokens together, each as long as the longest; one at least."""
    part: list[Any] = []
    for item in order:
        if part and (len(part) + 1) * max(map(size, (*part, item))) > most:
            yield part
            part = []
        part.append(item)
    if part:
        yield part
