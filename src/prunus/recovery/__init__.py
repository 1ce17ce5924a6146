"""Recoveries: repair what is kept of a model. One file each; the file name is the name."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from ..calibration.pair import Place, Watch, unwatched
from ..calibration.placement import Placement
from ..sites import Anatomy, SublayerSite

__all__ = ["BlockRecovery", "Concluding", "Recovery", "block_by_block", "reselects"]


@runtime_checkable
class Recovery(Protocol):
    """Changes weights that are kept, so that the model does without what goes.

    A frozen dataclass whose fields are its hyper-parameters. `recover` is called while all branches are still there, those `gone` too,
    and all channels, those that have gone as zeros; it neither removes them nor changes a shape, and weights that are zero stay zero.
    `dense` are the parameters, by name, that have other values now than in the dense model, with those of the dense model.

    One with a field `reselect` above 0 lets weights come back for others in `mend`, as many in every group, row or matrix (`reselects`).
    """

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """Raises RecipeError for a family that `recover` cannot repair. The model is dense."""
        ...

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        """Repair in place, and give what the report has to say of it, if anything. `watch` is told a phase, what is done of it, and the
        total. Raises CalibrationError when the calibration tokens cannot be used."""
        ...


@runtime_checkable
class BlockRecovery(Recovery, Protocol):
    """One that looks at a block at a time. Where matrices are pruned, it repairs every block as soon as that is pruned, so that the next
    one is pruned for what it will read."""

    @property
    def branches(self) -> bool:
        """Whether `mend` wants the dense model's stream behind single branches."""
        ...

    def mend(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> Sequence[str]:
        """Repair one block in place, while no parameter asks for a gradient and the model evaluates; gives what `recover` gives."""
        ...


@runtime_checkable
class Concluding(Recovery, Protocol):
    """One that works on the whole model, once what comes `first` in it has repaired all blocks. Where that looks at a block at a time and
    matrices are pruned, it does so as soon as each is pruned, and `conclude` is called in place of `recover`."""

    @property
    def first(self) -> Recovery | None:
        ...

    def conclude(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], taught: Float[Tensor, "samples length width"],
                 tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        """As `recover`, with the dense model's stream behind its last block in place of its parameters."""
        ...


def block_by_block(recovery: Recovery | None) -> BlockRecovery | None:
    """What repairs a block as soon as it is pruned: a recovery, or what comes first in one that works on the whole model after that."""
    found = recovery.first if isinstance(recovery, Concluding) else recovery
    return found if isinstance(found, BlockRecovery) else None


def reselects(recovery: Recovery | None) -> bool:
    """Whether it chooses masks again, for which it needs the dense model's matrices and the shape of the zeros: `Place.masked`, of a block
    that is repaired as soon as its matrices are pruned."""
    return getattr(recovery, "reselect", 0) > 0
