"""prunus describe MODEL."""

from typing import Annotated, Any

import typer

from . import options as o

__all__ = ["describe"]


def describe(
    model: o.Model,
    all_sites: Annotated[bool, typer.Option("--all", help="Every site, not one row per kind.")] = False,
    dense: Annotated[str | None, typer.Option(
        help="The dense model that it was pruned from: what is zero or gone is counted, matrix by matrix.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """List the places of a model that can give up weights; or count, against the dense model, what it has given up."""
    import json as writer
    from dataclasses import asdict

    from ..anatomy import describe as describe_model
    from ..loading import load

    network: Any = load(model, trust_remote_code=trust_remote_code).model
    anatomy = describe_model(network)
    if dense:
        _print_counted(model, network, anatomy, describe_model(load(dense, trust_remote_code=trust_remote_code).model), all_sites, json)
        return
    sites = anatomy.sites()
    if json:
        typer.echo(writer.dumps([{"kind": _kind(site), "size": site.size, **asdict(site)} for site in sites], indent=2))
        return
    total = sum(parameter.numel() for parameter in network.parameters())
    linear = sum(site.size for site in anatomy.sites("linear"))
    dtype = str(network.dtype).removeprefix("torch.")
    typer.echo(f"{model}: {network.config.model_type}, {len(anatomy.blocks)} blocks, {total:,} parameters ({dtype}), "
               f"{linear:,} ({linear / total:.1%}) of them in matrices that can be pruned.")
    rows = [(_kind(site), site.name, _shape(site), f"{site.size:,}") for site in sites if all_sites or site.block == 0]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    if not all_sites:
        typer.echo("Sites of the first block (all of them with --all):")
    for kind, name, shape, size in rows:
        typer.echo(f"  {kind:{widths[0]}}  {name:{widths[1]}}  {shape:{widths[2]}}  {size:>{widths[3]}} weights")


def _print_counted(source: str, network: Any, anatomy: Any, dense: Any, every: bool, as_json: bool) -> None:
    """What is zero or gone, beside what was asked where the folder says so: one row per kind of matrix, or per matrix."""
    import json
    from dataclasses import asdict

    from ..achieved import counted, sparsity_of
    from ..figures import place

    found, asked = counted(network, anatomy, dense), _asked(source)
    if as_json:
        rows = [{**asdict(matrix), "sparsity": matrix.sparsity, "asked": asked.get(matrix.name)} for matrix in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    zeros, gone, weights = (sum(getattr(matrix, name) for matrix in found) for name in ("zeros", "gone", "weights"))
    typer.echo(f"{source}: {sparsity_of(found):.2%} of the weights of the dense model's block matrices are zero or gone: {zeros:,} zeros "
               f"and {gone:,} gone of {weights:,}.")
    groups: dict[str, list[Any]] = {}
    for matrix in found:
        groups.setdefault(matrix.name if every else place(matrix.name)[1], []).append(matrix)
    width = max(map(len, groups))
    for name, group in groups.items():
        wanted = [asked[matrix.name] for matrix in group if matrix.name in asked]
        beside = f"  asked {sum(wanted) / len(wanted):7.2%}" if wanted else ""
        typer.echo(f"  {name:{width}}  {len(group):4} x  counted {sparsity_of(group):7.2%}{beside}")


def _asked(source: str) -> dict[str, float]:
    """What the recipe asked of every site, as `prunus prune` wrote it down."""
    from pathlib import Path

    from ..files import readable

    return {site: share for stage in readable(Path(source) / "allocation.json") or [] for site, share in stage.items()}


def _kind(site: object) -> str:
    return type(site).__name__.removesuffix("Site").lower()


def _shape(site: object) -> str:
    from ..sites import ChannelSite, LinearSite

    match site:
        case LinearSite():
            return f"{site.shape[0]} x {site.shape[1]}"
        case ChannelSite():
            return f"{site.count} channels"
    return ""
