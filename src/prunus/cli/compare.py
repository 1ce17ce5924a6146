"""prunus compare DENSE A B … --corpora c1,c2 --tasks t1,t2 --out FOLDER."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..comparing.values import Compared

__all__ = ["compare"]


def compare(
    models: Annotated[list[str], typer.Argument(
        help="The dense model, then those to compare with it: folders, hub ids, .gguf files, or package:NAME.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the report, in which measurements are kept too.", show_default=False)],
    corpora: Annotated[str, typer.Option(help="Texts, with commas: builtin, c4, wikitext2, ptb, or files; none for none.")] = "builtin",
    tasks: Annotated[str | None, typer.Option(help="Tasks, with commas: piqa,arc_easy,mmlu, or folders. [default: none]")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task, from the first on. [default: all]")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples with their answers before each question. [default: as the task says]")] = None,
    split: Annotated[str | None, typer.Option(help="Of the texts: train, validation or test. [default: test, or validation]")] = None,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    tokens: Annotated[int, typer.Option(help="How many tokens of each text are read; 0 for the whole text.")] = 20_480,
    prompt: Annotated[list[str] | None, typer.Option(
        help="A prompt that every model answers, or @mt_bench:4:0 for 4 of a corpus by seed 0; may be repeated; none for none. "
             "[default: three short ones]")] = None,
    answer: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of speed, in which every model has its turn; 0 to leave speed and memory out.")] = 5,
    read: Annotated[int, typer.Option(help="Tokens that are read in a round.")] = 256,
    write: Annotated[int, typer.Option(help="Tokens that are written in a round.")] = 32,
    known: Annotated[Path | None, typer.Option(
        help="A JSON file with known values of the dense model and their protocols: a report.json, or what prunus evaluate --json "
             "prints.")] = None,
    device: o.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of all models: auto (the dense model's own), float32, bfloat16 or float16.")] = "auto",
    quiet: o.Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Compare pruned models with the dense one: quality, tasks, speed and size in one table, with tests, as HTML, Markdown and JSON.

    What is measured is kept in the folder: the same command again, or with one more model or task, measures only what is missing.
    """
    from ..comparing.run import compare as run
    from ..comparing.run import write as write_report
    from ..comparing.values import Asked
    from ..known import read_known
    from .progress import Screen

    said: dict[str, Any] = {} if prompt is None else {"prompts": () if prompt == ["none"] else tuple(prompt)}
    asked = Asked(() if corpora == "none" else o.words(corpora), o.words(tasks or ""), limit, shots, split, length, tokens, answer=answer,
                  rounds=rounds, read=read, write=write, device=device, dtype=dtype, **said)
    values = read_known(known) if known else ()
    with Screen(quiet or json) as screen:
        try:
            found = run(models, asked, out, known=values, trust=trust_remote_code, watch=screen.working)
        except KeyboardInterrupt:
            screen.warn(f"Interrupted: what was measured is kept in {out}. The same command goes on from there.")
            raise
        files = write_report(found, out)
    if json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        _print(found, files)


def _print(found: "Compared", files: tuple[Path, ...]) -> None:
    """The main table in short, and where the rest is."""
    from ..comparing.content import lead_of, main_table
    from ..comparing.page import aligned

    for flag in found.flags:
        typer.secho(flag, bold=True)
    table = main_table(found)
    rows = [list(table.head)]
    for _, group in table.groups:
        rows += [[first.text, *(" ".join(["* " * cell.best + cell.text, *cell.notes[:1]]) for cell in cells)] for first, *cells in group]
    for line in aligned(rows):
        typer.echo(line)
    typer.echo("* the best of the pruned models, or not to be told from it. In brackets: 95 % intervals; of speed, all rounds.")
    for line in lead_of(found)[1:]:
        typer.echo(line)
    typer.echo(f"Written: {', '.join(str(file) for file in files)}")
