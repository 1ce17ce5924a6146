"""prunus describe MODEL."""

from typing import Annotated, Any

import typer

from . import options as o

__all__ = ["describe"]


def describe(
    model: o.Model,
    all_sites: Annotated[bool, typer.Option("--all", help="Every site, not one row per kind.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """List the places of a model that can give up weights."""
    import json as writer
    from dataclasses import asdict

    from ..anatomy import describe as describe_model
    from ..loading import load

    network: Any = load(model, trust_remote_code=trust_remote_code).model
    anatomy = describe_model(network)
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
