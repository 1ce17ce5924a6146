"""How near a model's predictions are to the dense model's, to the text, and to how sure it is of them: all in one pass."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..calibration.blocks import evaluating
from ..calibration.corpus import Text
from ..calibration.readout import window_logits
from ..calibration.reported import check_windows, report_text, windows_of
from ..comparison import bare
from ..errors import RecipeError
from ..targets import Predicted
from ..traits import predicts_next
from ..uncertainty import statistic_draws
from ..widening import widened
from . import Context, Measurement

__all__ = ["Fidelity"]

_DRAWS = 1000


@dataclass(frozen=True)
class Fidelity:
    """Perplexity, as the metric of that name has it; the expected calibration error of the next token; and, where a dense model was
    measured first, the divergence from it and how often the most probable token is the same. Several texts, one pass through each.

    Divergence is KL(dense || model) in nats per token, where the dense model's `top` most probable tokens are told apart and all others
    count as one, so it is a lower bound of the whole one. Calibration error: predictions are put into `bins` of equal width by the
    probability of the most probable token; of each bin the distance between the mean probability and the share that was right, and of
    these the mean, weighed by predictions (Guo et al. 2017).
    """

    corpora: tuple[str, ...] = ("builtin",)  # as in Calibration
    split: str | None = None  # None: test, or validation where there is no test
    length: int = 512  # tokens per window
    tokens: int = 20_480  # how many of each text are read; 0: all
    bos: bool | None = None  # begin every window with BOS; None: as the tokenizer does by itself
    bins: int = 15  # of the calibration error
    top: int = 256  # tokens that the divergence tells apart

    unit: ClassVar[str] = "perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def __post_init__(self) -> None:
        check_windows(self.length, self.tokens, "fidelity")
        if min(self.bins, self.top) < 1:
            raise RecipeError(f"fidelity: bins = {self.bins}, top = {self.top}: expected at least 1 of each.")
        if not self.corpora or len(set(self.corpora)) < len(self.corpora):
            raise RecipeError(f"fidelity: corpora = {list(self.corpora)}: expected at least one, and every one once.")

    def texts(self) -> tuple[Text, ...]:
        """What it is measured on."""
        return tuple(report_text(corpus, self.split) for corpus in self.corpora)

    def measure(self, model: nn.Module, context: Context) -> tuple[Measurement, ...]:
        if not predicts_next(model):
            raise RecipeError("fidelity needs a model that predicts the next token; this one does not.")
        texts = self.texts()
        found: list[Measurement] = []
        for place, text in enumerate(texts):
            table, how = windows_of(text, context.tokenizer, model, self.length, self.tokens, self.bos, "fidelity", context.stored)
            context.watch(f"text {text.name}", place, len(texts))
            found += self._on(model, table, context.dense, f"{text.name} {text.split}", how)
        return tuple(found)

    def _on(self, model: nn.Module, table: Int[Tensor, "windows length"], dense: dict[str, Any] | None, name: str,
            how: str) -> list[Measurement]:
        start, key = time.perf_counter(), f"{self} {name}"
        first = dense is not None and key not in dense
        known, predicted = (dense or {}).get(key, (how, None))
        if bare(known) != bare(how):
            raise RecipeError(f"fidelity: {name}: the dense model has read other tokens than this one ({known}; {how}). Compare models "
                              "that share a tokenizer and a dtype.")
        with evaluating(model):
            seen = _read(model, table, self.bins, self.top if first else 0, predicted)
        seconds = time.perf_counter() - start
        if dense is not None and first:
            dense[key] = how, seen.predicted
        mean = math.fsum(seen.losses) / len(seen.losses)
        perplexity = Measurement(math.inf if mean >= 700 else math.exp(mean), self.unit, self.better, f"{name} perplexity, {how}",
                                 seen.losses, seconds)
        error = _calibration_error(seen.bins)
        draws = statistic_draws(lambda drawn: _calibration_error(seen.bins[drawn]), len(table), _DRAWS)
        calibration = Measurement(error, "share", "lower", f"{name} calibration error, {self.bins} bins of equal width, {how}",
                                  tuple(_calibration_error(window[None]) for window in seen.bins), seconds, "means", draws)
        found = [perplexity, calibration]
        if dense is not None:
            kept = f"top {self.top} tokens and all others as one"
            rows: list[tuple[str, Literal["lower", "higher"], str, Sequence[float]]] = [
                ("nats per token", "lower", f"{name} divergence from dense, {kept}, {how}", seen.divergences),
                ("share", "higher", f"{name} agreement with dense, {how}", seen.agreements)]
            found += [Measurement(math.fsum(parts) / len(parts), unit, better, protocol, tuple(parts), seconds, "means")
                      for unit, better, protocol, parts in rows]
        return found


@dataclass(frozen=True)
class _Seen:
    """What one pass through a text gave, by window."""

    losses: tuple[float, ...]  # mean negative log-likelihood, in nats
    bins: Float[Tensor, "windows bins 3"]  # predictions, the sum of their probabilities, and how many were right
    predicted: list[list[Predicted]]  # what a later model is compared with, slice by slice; empty where none is
    divergences: tuple[float, ...]  # nats per token; 0 of the model that is compared with
    agreements: tuple[float, ...]  # shares


@widened()
def _read(model: Any, table: Int[Tensor, "windows length"], bins: int, top: int, known: list[list[Predicted]] | None) -> _Seen:
    """One pass. With `top` the model's predictions are kept for others; with `known` it is compared with those of another."""
    count, each = len(table), table.shape[1] - 1
    losses, divergences = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    same = torch.zeros(count, dtype=torch.float64) if known else torch.full((count,), float(each), dtype=torch.float64)
    sums = torch.zeros(count, bins, 3, dtype=torch.float64)
    predicted: list[list[Predicted]] = [[] for _ in table]
    turn = [0] * count
    for window, start, logits in window_logits(model, table):
        logits = logits.float()
        targets = table[window, start + 1 : start + 1 + len(logits)].to(logits.device)
        losses[window] += cross_entropy(logits, targets, reduction="sum").cpu()
        best, said = logits.max(-1)
        sure = (best - logits.logsumexp(-1)).exp().cpu().double()
        rows = torch.stack([torch.ones_like(sure), sure, (said == targets).cpu().double()], 1)
        sums[window].index_add_(0, (sure * bins).nan_to_num().long().clamp(max=bins - 1), rows)  # no number stays none
        if top:
            predicted[window].append(Predicted.of([logits[None]], top))
        if known:
            theirs = known[window][turn[window]]
            turn[window] += 1
            divergences[window] += theirs.loss([logits[None]])
            same[window] += float((theirs.index[0][:, 0] == said).sum())
    return _Seen(tuple((losses / each).tolist()), sums, predicted if top else [], tuple((divergences / each).tolist()),
                 tuple((same / each).tolist()))


def _calibration_error(bins: Float[Tensor, "windows bins 3"]) -> float:
    """Guo et al. 2017, eq. 3, of the predictions of all windows."""
    total = bins.sum(0)
    return float((total[:, 1] - total[:, 2]).abs().sum() / total[:, 0].sum())
