"""prunus finetune MODEL --out FOLDER."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .running import check_head, journal_of, kept, opened

if TYPE_CHECKING:
    from ..calibration.tasks import Labelled
    from ..front import FrontSearch
    from ..journal import Journal
    from ..loading import Loaded

__all__ = ["finetune"]

_Strategy = Annotated[str | None, typer.Option(
    help="Which networks every step trains: standard (the model alone), distilled (the same, by --teacher too), one_shot, sandwich, "
         "random, linear_random, kd, one_shot_upper or fixed; settings after commas: one_shot,subnets=2,temperature=10. [default: "
         "standard; with --teacher distilled]")]
_Space = Annotated[str | None, typer.Option(
    help="The sub-networks of those: small, medium, layer, sublayer or large; settings after commas. [default: small]")]
_NEW_HEAD = ("Note: the head is new, so the loss says little of what matters. Train the model alone first (--strategy standard), and the "
             "super-network from what that saves.")


def finetune(
    model: o.Model,
    out: o.Out,
    task: o.Task = None,
    strategy: _Strategy = None,
    teacher: Annotated[str | None, typer.Option(
        help="Another, larger model whose answers are learned beside the labels: one that was trained on the same task, or has the same "
             "vocabulary. [default: none; strategies with sub-networks learn from the model itself]")] = None,
    space: _Space = None,
    order: o.Order = None,
    calibration: Annotated[str, typer.Option(help="Text to train on, where there is no task; and to order channels by.")] = "builtin",
    samples: o.Samples = None,
    length: o.Length = None,
    epochs: Annotated[int, typer.Option(help="Passes through the examples.")] = 5,
    steps: Annotated[int, typer.Option(help="Changes of the weights at most; 0: as many as the epochs have.")] = 0,
    batch: Annotated[int, typer.Option(help="Examples, or sequences, at a time.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches whose gradients are added up before the weights change.")] = 1,
    rate: Annotated[float, typer.Option(help="The largest learning rate.")] = 2e-5,
    warmup: Annotated[float, typer.Option(help="The fraction of the steps in which the rate grows to it.")] = 0.0,
    precision: Annotated[str, typer.Option(help="In which matrices are multiplied: float32, bfloat16 or float16.")] = "float32",
    no_dropout: Annotated[bool, typer.Option("--no-dropout", help="Train without the dropout that the model's config asks for: what "
                                                                  "learns from a teacher may fit it better.")] = False,
    rank: Annotated[int, typer.Option(help="Of low-rank adapters (LoRA) that are trained in the weights' stead; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the order of the examples, sub-networks, and a new head.")] = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    quiet: o.Quiet = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train a model on a task or a text; with another strategy than standard, its sub-networks too (a super-network)."""
    from ..calibration.placement import Placement
    from ..calibration.tasks import Task, encoded
    from ..checkpoint import folder, save_model
    from ..finetune import Training, check_teacher, train_supernet
    from ..front import FrontSearch
    from ..frontier import genome_of
    from ..recipe import build, plain, plugin
    from ..seen import Seen
    from ..supernets import SuperNet, check_trained
    from .progress import Screen

    trained_by = plugin("supernet", o.named(strategy or ("distilled" if teacher else "standard"), "--strategy"), "--strategy")
    alone = getattr(trained_by, "alone", False)
    _check_flags(f"--strategy {type(trained_by).__name__.lower()}: it trains no parts", {"space": space, "order": order} if alone else {})
    _check_flags("--task, whose examples are read instead", {"samples": samples, "length": length} if task else {})
    check_teacher(trained_by, teacher)
    training: Training = build(Training, {"epochs": epochs, "steps": steps, "batch": batch, "accumulate": accumulate, "rate": rate,
        "warmup": warmup, "precision": precision, "dropout": not no_dropout, "rank": rank, "seed": seed}, "training")
    read_as = o.said_of({"corpus": calibration, "samples": samples, "length": length})
    asked = {"objectives": ["error" if task else "divergence", "params"], "order": order or "none", "seed": seed, "calibration": read_as,
             "space": o.named(space or "small", "--space"), **({} if task is None else {"task": o.of_corpus(task, "--task")})}
    plan: FrontSearch = build(FrontSearch, asked, "finetune")
    check_trained(plan.space)
    read = plan.task.read() if isinstance(plan.task, Task) else None
    journal = journal_of(model, out, overwrite, resume)
    with Screen(quiet) as screen, kept(journal, out, screen):
        loaded = opened(model, Placement(device), dtype, trust_remote_code, screen, read.labels if read else (), seed)
        said = _teacher(teacher, loaded, read, (device, dtype, trust_remote_code), screen, trained_by) if teacher else None
        if loaded.new_head and plan.order == "fisher" and not alone:
            screen.say(_NEW_HEAD)
        orders = {} if alone else _orders(journal, loaded, plan, read, screen)
        genome = None if alone else genome_of(loaded.model, plan.space, orders)
        data = (encoded(read, "train", loaded.model, loaded.tokenizer) if read else
                plan.calibration.tokens(loaded.tokenizer, loaded.model, seed))
        done = train_supernet(loaded.model, genome, trained_by, data, training, folder=journal.folder, watch=screen.training, teacher=said)
        with folder(out.absolute()) as draft:
            save_model(loaded.model, loaded.tokenizer, draft)
            Seen.of(model).and_of(read, plan.calibration).write(draft)
            facts = {"strategy": plain(trained_by), "settings": plain(training), "task": plain(plan.task), "teacher": teacher,
                     "order": plan.order, **asdict(done)}
            if not alone:
                SuperNet(plan.space, {name: tuple(row) for name, row in orders.items()}, facts).write(draft)
        _say_scores(loaded, read, screen)
        screen.say(f"Saved to {out}: {done.steps} steps, loss {done.losses[-1]:.4f}, {done.seconds:.0f} s.")


def _check_flags(where: str, flags: dict[str, Any]) -> None:
    """Refuse what says nothing."""
    for name, value in flags.items():
        if value is not None:
            raise _refused(f"--{name} says nothing with {where}.")


def _orders(journal: "Journal", loaded: "Loaded", plan: "FrontSearch", read: "Labelled | None", screen: Any) -> dict[str, Any]:
    """Of channels; a training that goes on has those that it began with. Raises RecipeError where it began with another model or text."""
    from ..files import fingerprint
    from ..ordering import orders_of
    from ..recipe import plain
    from ..traits import weight_norms

    texts = (str(plain(part)) for part in (plan.task, plan.calibration, plan.space))
    identity = fingerprint(*texts, plan.order, str(plan.seed), *([read.train.digest] if read else []), *weight_norms(loaded.model))
    journal.begin(identity)
    return journal.measured(identity, f"orders-{plan.order}", lambda: orders_of(loaded.model, loaded.tokenizer, plan, read, screen.working))


def _say_scores(loaded: "Loaded", read: "Labelled | None", screen: Any) -> None:
    """Where there is a task."""
    from ..calibration.tasks import Split, encoded
    from ..predictions import score

    if read is None:
        return
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        found = score(loaded.model, encoded(read, split, loaded.model, loaded.tokenizer))
        low, high = found.interval
        screen.say(f"{found.metric} on the {split} split: {found.value:.4f} [{low:.4f}, {high:.4f}]")


def _teacher(source: str, student: "Loaded", read: "Labelled | None", place: tuple[str, str, bool], screen: Any, strategy: Any) -> Any:
    """What the teacher answers to the training split; where that is not enough, itself. Raises RecipeError where it does not fit."""
    from ..calibration.placement import Placement
    from ..calibration.tasks import outputs_of
    from ..predictions import teachings
    from ..traits import predicts_next

    device, dtype, trust = place
    loaded = opened(source, Placement(device), dtype, trust, screen, read.labels if read else ())
    if read:
        check_head(loaded, read)
        if not getattr(strategy, "asks", False):
            screen.say("Asking the teacher")
            return teachings(loaded.model, loaded.tokenizer, read, student.model)
        if outputs_of(loaded.model, read) != outputs_of(student.model, read):
            raise _refused(f"--teacher {source}: its head has the labels in another order than {student.source}. Learn from what it says "
                           "to these examples alone (hidden=0,noise=0).")
    elif not predicts_next(loaded.model):
        raise _refused(f"--teacher {source}: does not predict the next token, so it teaches nothing about text.")
    models: list[tuple[Any, Any]] = [(one.model, one.tokenizer) for one in (loaded, student)]
    words = [(words.get_vocab(), model.config.get_text_config().vocab_size) for model, words in models if words]
    if len(words) < 2 or words[0] != words[1]:
        raise _refused(f"--teacher {source}: has another vocabulary than {student.source}. Choose one with the same tokenizer, or a task.")
    places = [str(next(one.model.parameters()).device) for one in (loaded, student)]
    if places[0] != places[1]:
        raise _refused(f"--teacher {source}: does not fit on {device} beside the model. Use a smaller one, or --device cpu.")
    return loaded.model


def _refused(reason: str) -> Exception:
    from ..errors import RecipeError

    return RecipeError(reason)
