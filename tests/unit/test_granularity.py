"""Masks have exact counts, ties go by position, and `snap` says beforehand what `keep_mask` reaches."""

import math

import pytest
import torch

from prunus.errors import RecipeError
from prunus.granularity import NM, Columns, Granularity, Tile, Unstructured, check_shape, exchanged, keep_mask, removed_count, snap

from ..problems import SHAPES, generator, sparsity_of


def drawn(rows: int = 12, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, width, generator=generator(seed))


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.3, 0.5, 0.611, 0.99])
@pytest.mark.parametrize("granularity", SHAPES, ids=str)
def test_snap_is_what_keep_mask_reaches(granularity: Granularity, sparsity: float) -> None:
    if isinstance(granularity, NM) and sparsity:
        sparsity = sparsity_of(granularity)
    removed = int((~keep_mask(drawn(), sparsity, granularity)).sum())
    assert snap(sparsity, (12, 24), granularity) == pytest.approx(removed / (12 * 24), abs=1e-12)


@pytest.mark.parametrize("granularity", [shape for shape in SHAPES if not isinstance(shape, NM)], ids=str)
def test_never_less_is_removed_than_asked(granularity: Granularity) -> None:
    for step in range(100):
        assert snap(step / 100, (12, 24), granularity) >= step / 100 - 1e-7


@pytest.mark.parametrize("granularity", SHAPES, ids=str)
def test_equal_saliencies_still_give_exact_counts(granularity: Granularity) -> None:
    sparsity = sparsity_of(granularity)
    kept = int(keep_mask(torch.ones(12, 24), sparsity, granularity).sum())
    assert kept == round(288 * (1 - snap(sparsity, (12, 24), granularity)))


def test_of_equal_saliencies_the_first_positions_stay() -> None:
    saliency = torch.tensor([[1.0, 5.0, 1.0, 1.0, 1.0, 0.0]])
    assert keep_mask(saliency, 0.5, Unstructured("row")).tolist() == [[True, True, True, False, False, False]]
    assert keep_mask(saliency[:, :4], 0.5, NM(2, 4)).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("asked", [0.1, 0.25, 0.5, 0.7, 0.9])
def test_row_scope_removes_the_same_count_from_every_row(asked: float) -> None:
    removed = (~keep_mask(drawn(), asked, Unstructured("row"))).sum(1)
    assert removed.unique().tolist() == [math.ceil(asked * 24 - 1e-6)]


def test_row_scope_keeps_the_largest_of_every_row() -> None:
    saliency = drawn()
    mask = keep_mask(saliency, 0.5, Unstructured("row"))
    worst_kept = saliency.masked_fill(~mask, math.inf).amin(1)
    assert (worst_kept > saliency.masked_fill(mask, 0).amax(1)).all()


def test_matrix_scope_keeps_the_largest_of_the_matrix_however_rows_share_them() -> None:
    saliency = drawn()
    saliency[0] += 10
    mask = keep_mask(saliency, 0.5, Unstructured("matrix"))
    assert int(mask.sum()) == 144
    assert mask[0].all()
    assert saliency[mask].min() > saliency[~mask].max()


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (4, 8), (4, 6), (6, 8), (8, 12), (4, 4)])
def test_n_of_every_m_stay_and_they_are_the_largest(n: int, m: int) -> None:
    saliency = drawn()
    mask = keep_mask(saliency, 1 - n / m, NM(n, m)) if n < m else keep_mask(saliency, 0.5, NM(n, m))
    groups, values = mask.view(-1, m), saliency.view(-1, m)
    assert groups.sum(1).unique().tolist() == [n]
    expected = torch.zeros_like(groups).scatter(1, values.topk(n, dim=1).indices, True)
    assert torch.equal(groups, expected)


def test_tiles_go_whole_and_the_weakest_sums_go_first() -> None:
    saliency = drawn()
    mask = keep_mask(saliency, 0.5, Tile(3, 4))
    tiles = mask.view(4, 3, 6, 4).permute(0, 2, 1, 3).reshape(24, 12)
    sums = saliency.view(4, 3, 6, 4).sum(dim=(1, 3)).flatten()
    assert (tiles.all(1) | ~tiles.any(1)).all()
    assert int(tiles.all(1).sum()) == 12
    assert sums[tiles.all(1)].min() > sums[~tiles.all(1)].max()


@pytest.mark.parametrize("width", [1, 2, 6])
def test_columns_go_whole_and_in_neighbouring_groups(width: int) -> None:
    mask = keep_mask(drawn(), 0.5, Columns(width))
    assert torch.equal(mask, mask[:1].expand(12, 24))
    groups = mask[0].view(-1, width)
    assert (groups.all(1) | ~groups.any(1)).all()
    assert int(groups.all(1).sum()) == 24 // width // 2


def test_sparsity_zero_keeps_all_even_of_n_m() -> None:
    assert keep_mask(drawn(), 0.0, NM(2, 4)).all()
    assert snap(0.0, (12, 24), NM(2, 4)) == 0


def test_rounding_noise_does_not_remove_one_too_many() -> None:
    assert removed_count(0.7, 10) == 7  # 0.7 * 10 is 7.000000000000001 in floats
    assert removed_count(0.1 + 0.2, 10) == 3
    assert removed_count(1 - 0.35, 1_000_000) == 650_000
    assert removed_count(0.5000011, 1_000_000) == 500_002


@pytest.mark.parametrize(("granularity", "reason"), [
    (NM(2, 5), "multiple of 5 inputs, found 24"),
    (Tile(5, 4), "5x4 do not divide its shape 12x24"),
    (Tile(4, 5), "4x5 do not divide its shape 12x24"),
    (Columns(7), "7 columns do not divide its 24 inputs"),
])
def test_shapes_that_do_not_tile_a_weight_are_refused_by_name(granularity: Granularity, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"^a.b: .*{reason}"):
        check_shape((12, 24), granularity, "a.b")


@pytest.mark.parametrize("granularity", SHAPES, ids=str)
def test_shapes_that_tile_a_weight_pass(granularity: Granularity) -> None:
    check_shape((12, 24), granularity)


@pytest.mark.parametrize("make", [
    lambda: NM(0, 4), lambda: NM(5, 4), lambda: NM(-1, 4), lambda: Tile(0, 4), lambda: Tile(4, -1), lambda: Columns(0),
    lambda: Unstructured("column"),
])
def test_impossible_shapes_cannot_be_written_down(make: object) -> None:
    from jaxtyping import TypeCheckError

    with pytest.raises((RecipeError, TypeCheckError)):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(("asked", "multiple", "kept"), [(0.0, 8, 24), (0.1, 8, 16), (0.25, 4, 16), (0.3, 4, 16), (0.5, 8, 8), (0.9, 8, 0)])
def test_of_columns_a_multiple_stays(asked: float, multiple: int, kept: int) -> None:
    granularity = Columns(2, multiple)
    saliency = torch.rand(3, 48, generator=torch.Generator().manual_seed(0))
    mask = keep_mask(saliency, asked, granularity)
    assert int(mask[0].sum()) == 2 * kept
    assert snap(asked, (3, 48), granularity) == pytest.approx(1 - kept / 24)
    assert str(granularity) == f"columns:2x{multiple}"


@pytest.mark.parametrize(("asked", "multiple", "kept"), [(0.0, 1, 3), (0.1, 1, 3), (0.17, 1, 2), (0.5, 1, 1), (0.49, 1, 2), (0.9, 1, 0),
                                                          (0.3, 2, 2)])
def test_columns_are_rounded_to_the_nearest_count_where_it_is_asked_for(asked: float, multiple: int, kept: int) -> None:
    granularity = Columns(4, multiple, nearest=True)
    mask = keep_mask(torch.rand(2, 12, generator=torch.Generator().manual_seed(0)), asked, granularity)
    assert int(mask[0].sum()) == 4 * kept
    assert snap(asked, (2, 12), granularity) == pytest.approx(1 - kept / 3)


MASKS = [Unstructured("row"), Unstructured("matrix"), NM(2, 4), NM(1, 4), NM(4, 8)]


def competing(values: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """Weights of which a fixed number stays, a row each."""
    width = granularity.m if isinstance(granularity, NM) else 24 if granularity == Unstructured("row") else values.numel()
    return values.reshape(-1, width)


@pytest.mark.parametrize("granularity", MASKS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_an_exchange_takes_the_pairs_that_differ_most_one_after_the_other(granularity: Granularity, share: float) -> None:
    """Compared with a loop that looks for the best pair of all again and again."""
    assert isinstance(granularity, NM | Unstructured)
    saliency, mask = drawn(seed=1), keep_mask(drawn(), sparsity_of(granularity), granularity)
    values, kept = competing(saliency, granularity), competing(mask, granularity).clone()
    for _ in range(max(1, int(share * int(mask.sum())))):
        gains = values.masked_fill(kept, -math.inf).amax(1) - values.masked_fill(~kept, math.inf).amin(1)
        row = int(gains.argmax())
        if gains[row] <= 0:
            break
        worst, best = values[row].masked_fill(~kept[row], math.inf).argmin(), values[row].masked_fill(kept[row], -math.inf).argmax()
        kept[row, worst], kept[row, best] = False, True
    assert torch.equal(exchanged(saliency, mask, granularity, share), kept.view(mask.shape))
    if share == 1:
        assert torch.equal(kept.view(mask.shape), keep_mask(saliency, sparsity_of(granularity), granularity))


def test_an_exchange_leaves_rows_and_groups_that_keep_more_or_less_than_others_as_they_are() -> None:
    mask = keep_mask(drawn(), 0.7, Unstructured("matrix"))
    for granularity in MASKS:
        assert isinstance(granularity, NM | Unstructured)
        found = exchanged(drawn(seed=1), mask, granularity, 1.0)
        assert not torch.equal(found, mask)
        assert torch.equal(competing(found, granularity).sum(1), competing(mask, granularity).sum(1))
    assert torch.equal(exchanged(drawn(), mask, Unstructured("matrix"), 1.0), mask)  # the most salient are there already
