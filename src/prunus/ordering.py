"""What every channel of a model that is to be searched matters, by its task or by calibration text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .anatomy import describe
from .calibration.corpus import Text, windows
from .calibration.gates import gate_gradients
from .calibration.loss import known_loss
from .calibration.pair import Watch, unwatched, watched
from .calibration.placement import Placement, together
from .calibration.tasks import Encoded, Labelled, encoded
from .criteria import loss_needs
from .distillation import task_loss
from .errors import RecipeError
from .front import FrontSearch
from .lookup import find
from .search.channels import channel_scores
from .sites import Anatomy, ChannelSite, Site
from .stats import LossNeeds
from .traits import predicts_next
from .widening import widened

__all__ = ["channels_of", "check_loss", "derivatives", "descending", "importance", "orders_of", "scores_by", "seen_by", "tokens_of",
           "training_batches"]

_ORDERING = 256  # examples, or sequences, at most, whose loss orders channels


@widened()
def orders_of(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, tell: Watch = unwatched) -> dict[str, list[int]]:
    """By channel site: its channels, those first that matter most; none where the plan says none.

    "fisher" is the mean square of the loss's derivative by a factor on the channel (Kwon et al. 2022), of examples of the training
    split or of calibration sequences; a criterion sees these as text.
    """
    return descending(importance(model, tokenizer, plan, read, tell))


def importance(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, tell: Watch) -> dict[str, Tensor]:
    """By channel site: what every channel matters."""
    if plan.order == "none":
        return {}
    sites = channels_of(describe(model))
    if plan.order == "fisher":
        return {name: rows.square().mean(0) for name, rows in derivatives(model, tokenizer, plan, read, sites, tell).items()}
    return scores_by(plan.order, model, tokenizer, plan, read, sites)


def descending(scores: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By channel site: its channels, those first that score most; of equal ones the one that comes first."""
    return {name: values.argsort(descending=True, stable=True).tolist() for name, values in scores.items()}


def scores_by(criterion: str, model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None,
              sites: Sequence[ChannelSite]) -> dict[str, Tensor]:
    """What every channel matters, by a criterion."""
    chosen, anatomy = find("criteria", criterion)(), describe(model)
    tokens, loss = seen_by(chosen, f"order = {criterion!r}", "fisher", model, tokenizer, plan, read, sites)
    found = channel_scores(sites, chosen, model, anatomy, tokens, loss, Placement.of(model), together(tokens.shape[1]))
    return {name: torch.from_numpy(values) for name, values in found.items()}


def seen_by(part: Any, where: str, other: str, model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None,
            sites: Sequence[Site]) -> tuple[Tensor, Mapping[str, Any]]:
    """What a criterion or a solver reads, and what it wants to know of the loss. Raises as `check_loss`."""
    needs = check_loss(part, where, other, model)
    tokens = tokens_of(model, tokenizer, plan, read)
    return tokens, known_loss(model, describe(model), sites, tokens, needs, plan.seed) if needs else {}


def check_loss(part: Any, where: str, other: str, model: Any) -> LossNeeds | None:
    """What a criterion or a solver wants to know of the loss. Raises RecipeError, which says to use the `other`, for a model without."""
    needs = loss_needs(part)
    if needs and not predicts_next(model):
        raise RecipeError(f"{where}: looks at the loss of the next token, which this model does not predict. Use {other}.")
    return needs


def derivatives(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None, sites: Sequence[ChannelSite],
                tell: Watch) -> dict[str, Tensor]:
    """By channel site: of every example's loss, those by a factor on every channel."""
    losses = list(_losses(model, tokenizer, plan, read))
    return gate_gradients(model, sites, watched(losses, "derivatives of the loss", tell))


def training_batches(model: Any, tokenizer: Any, read: Labelled) -> list[Callable[[], Any]]:
    """Runs of the model on the training examples whose loss orders channels."""
    examples, device = encoded(read, "train", model, tokenizer), next(model.parameters()).device
    starts = range(0, min(_ORDERING, len(examples)), 32)
    return [partial(model, **examples.batch(range(start, min(start + 32, len(examples))), device)) for start in starts]


def _losses(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None) -> Iterator[Callable[[], Tensor]]:
    """Of single examples of the training split, or of single calibration sequences."""
    device = next(model.parameters()).device
    if read is not None:
        examples = encoded(read, "train", model, tokenizer)
        for index in range(min(_ORDERING, len(examples))):
            yield partial(_loss, model, examples, index)
        return
    for row in plan.calibration.tokens(tokenizer, model, plan.seed)[:_ORDERING].to(device):
        yield partial(_text_loss, model, row)


def _text_loss(model: Any, row: Tensor) -> Any:
    return model(input_ids=row[None], labels=row[None], use_cache=False).loss


def _loss(model: Any, examples: Encoded, index: int) -> Tensor:
    device = next(model.parameters()).device
    return task_loss(model(**examples.batch([index], device)).logits, examples.targets[[index]].to(device))


def tokens_of(model: Any, tokenizer: Any, plan: FrontSearch, read: Labelled | None) -> Tensor:
    """Calibration text, or the training split."""
    return plan.calibration.tokens(tokenizer, model, plan.seed) if read is None else _as_tokens(model, tokenizer, read)


def _as_tokens(model: Any, tokenizer: Any, read: Labelled) -> Tensor:
    """The training split as running text."""
    text = Text(read.train.name, "train", tuple(" ".join(texts) for texts in read.train.texts), "one row each")
    return windows(text, tokenizer, read.task.length, _ORDERING // 4)


def channels_of(anatomy: Anatomy) -> list[ChannelSite]:
    """All that a model has."""
    return [site for site in anatomy.sites("channel") if isinstance(site, ChannelSite)]
