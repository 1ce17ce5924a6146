"""The places of a model that can give up weights: values without tensors, and the branches they come in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = [
    "Anatomy", "Block", "ChannelSite", "Kind", "LinearSite", "Producer", "Silent", "Site", "Size", "SublayerSite",
    "attention", "branch", "gated_mlp", "grouped_rows", "grouped_settings", "plain_mlp", "shaped", "stack",
]

Kind = Literal["linear", "channel", "sublayer"]


@dataclass(frozen=True)
class LinearSite:
    """One weight matrix."""

    name: str  # module path, "model.layers.3.mlp.down_proj"
    block: int  # depth, from 0
    shape: tuple[int, int]  # (out, in)
    reads: str  # the activation it multiplies; sites with equal `reads` share statistics
    branch: str = ""  # path of its residual branch, "model.layers.3.mlp"; empty outside of any

    @property
    def size(self) -> int:
        """Its weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Producer:
    """Rows of one matrix that make a channel: channel c owns `rows` rows from offset + c * rows on."""

    name: str  # module path
    rows: int  # per channel
    offset: int = 0  # first row; a fused matrix holds several producers


@dataclass(frozen=True)
class Size:
    """What a module, or the config, says about how many channels there are."""

    module: str  # module path; empty: the model's config
    name: str  # of the attribute
    each: int = 1  # its value is so much per channel


@dataclass(frozen=True)
class Silent:
    """What stands in the place of a module when its branch is skipped."""

    module: str  # module path
    gives: Literal["zeros", "pair", "input"]  # zeros, zeros and None, or what it is given


@dataclass(frozen=True)
class ChannelSite:
    """Channels shared by several matrices: rows of the producers, columns of the consumer."""

    name: str  # "model.layers.3.mlp.channels"
    block: int
    count: int  # channels: MLP width, or key/value groups with their queries
    consumer: str  # path of the matrix whose columns go: down_proj, o_proj
    width: int  # its columns per channel
    producers: tuple[Producer, ...]  # of attention queries, keys and values, these last
    size: int  # weights of producers and consumer together
    counted: tuple[Size, ...] = ()  # attributes of modules that a cut has to change
    settings: tuple[Size, ...] = ()  # of the config, where all blocks have as many channels; none: it cannot say
    multiple: int = 1  # of the channels that stay; it is the recipe that wants it

    @property
    def branch(self) -> str:
        """Path of its residual branch."""
        return self.name.removesuffix(".channels")

    @property
    def matrices(self) -> tuple[str, ...]:
        """Paths of the producers and the consumer, each once."""
        return tuple(dict.fromkeys((*(producer.name for producer in self.producers), self.consumer)))

    @property
    def parts(self) -> tuple[int, int, int]:
        """How many parts its inputs have, how many of them make a part, and how often the consumer reads each.

        Within a part they may take any order. An MLP is one part; of attention, the values of a group are, which all of its queries read.
        """
        if self.width == 1:
            return 1, self.count, 1
        head = (sum(producer.rows for producer in self.producers) - self.width) // 2  # rows of keys, and of values, which lie last
        return self.count, head, self.width // head


@dataclass(frozen=True)
class SublayerSite:
    """A residual branch that can be skipped: attention or MLP."""

    name: str  # "model.layers.3.mlp"
    block: int
    size: int  # weights of its matrices
    output: str  # path of the matrix whose product leaves the branch
    silent: tuple[Silent, ...] = ()  # what is put in its place
    norms: tuple[str, ...] = ()  # paths of the norms that nothing needs without it
    cache: str = ""  # path of the module that keeps keys and values, if it does
    cached: int = 0  # numbers that it keeps of every token, as keys and values
    seconds: float = 0.0  # that it takes on this machine; 0: nobody has measured it

    @property
    def branch(self) -> str:
        """Its path."""
        return self.name

    @property
    def kind(self) -> Literal["attention", "mlp"]:
        """By its path, as families name them: that of an encoder's attention keeps no keys."""
        return "attention" if "attn" in self.name or "attention" in self.name else "mlp"


Site = LinearSite | ChannelSite | SublayerSite


@dataclass(frozen=True)
class Block:
    """One layer of the stack, with its sites in the order of the forward pass."""

    name: str
    sites: tuple[Site, ...]

    @property
    def branches(self) -> tuple[SublayerSite, ...]:
        """Its residual branches, in the order of the forward pass."""
        return tuple(site for site in self.sites if isinstance(site, SublayerSite))

    @property
    def matrices(self) -> tuple[LinearSite, ...]:
        """Those of all its branches, in the order of the forward pass."""
        return tuple(site for site in self.sites if isinstance(site, LinearSite))

    def later(self, branch: SublayerSite) -> tuple[SublayerSite, ...]:
        """The branches behind one of them."""
        return self.branches[self.branches.index(branch) + 1 :]


@dataclass(frozen=True)
class Anatomy:
    """All blocks of a model, from the input up."""

    blocks: tuple[Block, ...]

    def sites(self, *kinds: Kind) -> tuple[Site, ...]:
        """The sites of the given kinds (all when none is given), in depth order."""
        wanted = tuple(_KINDS[kind] for kind in kinds) or tuple(_KINDS.values())
        return tuple(site for block in self.blocks for site in block.sites if isinstance(site, wanted))

    def below(self, prefix: str) -> "Anatomy":
        """The same anatomy with `prefix` before every path."""
        return Anatomy(tuple(Block(prefix + block.name, tuple(_renamed(prefix, site) for site in block.sites))
                             for block in self.blocks))


_KINDS: dict[str, type] = {"linear": LinearSite, "channel": ChannelSite, "sublayer": SublayerSite}


def _renamed(prefix: str, site: Site) -> Site:
    match site:
        case LinearSite():
            branch = prefix + site.branch if site.branch else ""
            return replace(site, name=prefix + site.name, reads=prefix + site.reads, branch=branch)
        case ChannelSite():
            producers = tuple(replace(producer, name=prefix + producer.name) for producer in site.producers)
            counted = tuple(replace(size, module=prefix + size.module) for size in site.counted)
            return replace(site, name=prefix + site.name, consumer=prefix + site.consumer, producers=producers, counted=counted)
        case SublayerSite():
            silent = tuple(replace(part, module=prefix + part.module) for part in site.silent)
            return replace(site, name=prefix + site.name, output=prefix + site.output, silent=silent,
                           norms=tuple(prefix + norm for norm in site.norms), cache=prefix + site.cache if site.cache else "")


def shaped(anatomy: Anatomy, shape: Mapping[str, Any]) -> Anatomy:
    """The anatomy of a model of the same family that has lost channels and branches.

    `shape` is what `shape.reshape` is told: branches under "silent" are gone, matrices under "matrices" are smaller.
    """
    return Anatomy(tuple(Block(block.name, tuple(_left(block.sites, shape))) for block in anatomy.blocks))


def _left(sites: Sequence[Site], shape: Mapping[str, Any]) -> Iterator[Site]:
    silent, matrices = shape.get("silent", {}), shape.get("matrices", {})
    gone = {site.name for site in sites if isinstance(site, SublayerSite) and any(part.module in silent for part in site.silent)}
    linear = {site.name: replace(site, shape=tuple(matrices.get(site.name, site.shape))) for site in sites if isinstance(site, LinearSite)}
    for site in sites:
        if site.branch in gone:
            continue
        size = sum(other.size for other in linear.values() if other.branch == site.branch)
        match site:
            case LinearSite():
                yield linear[site.name]
            case ChannelSite():
                count = linear[site.consumer].shape[1] // site.width
                moved = tuple(replace(producer, offset=producer.offset * count // site.count) for producer in site.producers)
                channels = replace(site, count=count, producers=moved, size=size)
                yield channels
            case SublayerSite():
                yield replace(site, size=size, cached=_cached(channels) if site.cache else 0)


def _cached(channels: ChannelSite) -> int:
    """Keys and values of a token, in all groups: what is produced, less the queries, which are as many as the consumer reads."""
    return channels.count * (sum(producer.rows for producer in channels.producers) - channels.width)


# What family files are written with. All paths are relative to the block and get its name in front.

Matrix = tuple[str, int, int, str]  # path, out, in, reads
Branch = tuple[Site, ...]


def stack(path: str, depth: int, *branches: Any) -> Anatomy:
    """`depth` equal blocks under `path`; each branch is a function (block name, depth) -> sites, in forward order."""
    blocks = []
    for level in range(depth):
        name = f"{path}.{level}"
        blocks.append(Block(name, tuple(site for make in branches for site in make(name, level))))
    return Anatomy(tuple(blocks))


def branch(path: str, matrices: Sequence[Matrix], *, count: int, consumer: str, producers: Sequence[Producer],
           silent: Sequence[Silent], norms: Sequence[str] = (), cache: str = "", counted: Sequence[Size] = (),
           settings: Sequence[Size] = ()) -> Any:
    """A residual branch at `path`: its matrices, its `count` channels and the branch itself.

    The channels share the consumer's inputs evenly. Gives the function that `stack` calls for each block.
    """
    width = next(inputs for name, _, inputs, _ in matrices if name == consumer) // count

    def make(block: str, depth: int) -> Branch:
        def full(name: str) -> str:
            return f"{block}.{name}"

        linear = tuple(LinearSite(full(name), depth, (out, inputs), full(reads), full(path)) for name, out, inputs, reads in matrices)
        size = sum(site.size for site in linear)
        rows = tuple(replace(producer, name=full(producer.name)) for producer in producers)
        channels = ChannelSite(full(f"{path}.channels"), depth, count, full(consumer), width, rows, size,
                               tuple(replace(item, module=full(item.module)) for item in counted), tuple(settings))
        skipped = SublayerSite(full(path), depth, size, full(consumer), tuple(replace(part, module=full(part.module)) for part in silent),
                               tuple(map(full, norms)), full(cache) if cache else "", _cached(channels) if cache else 0)
        return (*linear, channels, skipped)

    return make


def grouped_rows(queries: int, groups: int, head: int) -> tuple[int, int]:
    """Rows per key/value group of the query matrix and of the key (or value) matrix, with `head` rows per head."""
    return queries // groups * head, head


def attention(config: Any, path: str = "self_attn", query: str = "q_proj", key: str = "k_proj", value: str = "v_proj",
              output: str = "o_proj", **skipping: Any) -> Any:
    """Attention with separate q, k, v matrices, grouped queries or not; a channel is a key/value group with its queries.

    `skipping` is what `branch` is told of it; by default it is the module `path`, which gives a pair and keeps keys and values.
    """
    hidden, queries = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or queries
    head = getattr(config, "head_dim", None) or hidden // queries
    query_rows, rows = grouped_rows(queries, groups, head)
    reads = f"{path}.input"
    matrices = [
        (f"{path}.{query}", queries * head, hidden, reads),
        (f"{path}.{key}", groups * head, hidden, reads),
        (f"{path}.{value}", groups * head, hidden, reads),
        (f"{path}.{output}", hidden, queries * head, f"{path}.{output}.input"),
    ]
    producers = [Producer(f"{path}.{query}", query_rows), Producer(f"{path}.{key}", rows), Producer(f"{path}.{value}", rows)]
    told = {"silent": [Silent(path, "pair")], "cache": path, **skipping}
    return branch(path, matrices, count=groups, consumer=f"{path}.{output}", producers=producers, **told)


def grouped_settings(config: Any) -> tuple[Size, ...]:
    """What a config says of attention whose number of heads does not depend on the hidden size."""
    groups = config.num_key_value_heads or config.num_attention_heads
    return Size("", "num_key_value_heads"), Size("", "num_attention_heads", config.num_attention_heads // groups)


def gated_mlp(config: Any, path: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj",
              norms: Sequence[str] = ("post_attention_layernorm",)) -> Any:
    """An MLP whose gate and up matrices read the same input; a channel is a row of each."""
    hidden, width = config.hidden_size, config.intermediate_size
    reads = f"{path}.input"
    matrices = [
        (f"{path}.{gate}", width, hidden, reads),
        (f"{path}.{up}", width, hidden, reads),
        (f"{path}.{down}", hidden, width, f"{path}.{down}.input"),
    ]
    producers = [Producer(f"{path}.{gate}", 1), Producer(f"{path}.{up}", 1)]
    return branch(path, matrices, count=width, consumer=f"{path}.{down}", producers=producers, silent=[Silent(path, "zeros")],
                  norms=norms, settings=[Size("", "intermediate_size")])


def plain_mlp(hidden: int, width: int, first: str, second: str, path: str = "mlp", setting: str = "intermediate_size",
              module: str = "", norms: Sequence[str] = ()) -> Any:
    """An MLP of two matrices with an activation between; `first` and `second` are their full paths in the block.

    `module` is the whole of it, where there is one; `setting` is the config's name for its width.
    """
    matrices = [(first, width, hidden, f"{first}.input"), (second, hidden, width, f"{second}.input")]
    silent = [Silent(module, "zeros")] if module else [Silent(first, "input"), Silent(second, "zeros")]
    return branch(path, matrices, count=width, consumer=second, producers=[Producer(first, 1)], silent=silent, norms=norms,
                  settings=[Size("", setting)])
