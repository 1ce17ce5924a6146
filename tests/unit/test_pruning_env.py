"""The environment: what an agent sees, what its moves mean, and what it is paid."""

import math
import warnings
from typing import Any

import numpy
import pytest

from prunus.budget import Budget
from prunus.errors import RecipeError
from prunus.search.pruning_env import PruningEnv
from prunus.search.space import Candidate, Space
from prunus.sites import LinearSite

LEVELS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
SITES = tuple(LinearSite(f"b{block}.{name}", block, (rows, 10), f"b{block}.{name}.x", f"b{block}.{branch}")
              for block in range(4) for name, rows, branch in (("q", 4, "attn"), ("up", 10 + block, "mlp")))
ERRORS = tuple(tuple((1 + index) * level for level in LEVELS) for index in range(len(SITES)))
SPACE = Space(SITES, LEVELS, Budget(0.5), ERRORS)
FIRST = (3,) * len(SITES)  # 0.5 everywhere


def value(candidate: Candidate, partial: bool) -> float:
    return sum(LEVELS[level] * (1 + index) / 10 for index, level in enumerate(candidate))


def play(moves: list[float], asked: Any = value, first: Candidate = FIRST,
         **settings: Any) -> tuple[PruningEnv, list[float], list[Any], Candidate]:
    """An episode: the environment, rewards, observations and the last candidate."""
    env = PruningEnv(SPACE, asked, first, **settings)
    seen, rewards, candidate = [env.reset()[0]], [], ()
    for index, move in enumerate(moves):
        observation, reward, ended, truncated, info = env.step(numpy.array([move], numpy.float32))
        seen.append(observation)
        rewards.append(reward)
        candidate = info["candidate"]
        assert ended == (index == len(moves) - 1)
        assert not truncated
    return env, rewards, seen, candidate


def test_it_is_an_environment_by_the_library_s_own_check() -> None:
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(PruningEnv(SPACE, value, FIRST))


@pytest.mark.parametrize("moves", [[0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, 0.3, 1], [-1, -1, 1, -0.2]])
@pytest.mark.parametrize("width", [0.2, 0.5])
def test_whatever_the_moves_the_shares_meet_the_budget_exactly(moves: list[float], width: float) -> None:
    env, _, _, candidate = play(moves, width=width)
    assert env.gone == pytest.approx(SPACE.required, abs=1e-9)
    assert all(max(0.5 - width, 0) - 1e-9 <= share <= min(0.5 + width, 0.7) + 1e-9 for share in env.shares)
    assert SPACE.met(candidate)


@pytest.mark.parametrize("moves", [[0, 0, 0, 0], [1, 1, -1, -1], [0.5, -0.5, 0.1, 1]])
def test_moves_depart_from_what_the_search_begins_with(moves: list[float]) -> None:
    """Sites of 0.4 and 0.6 in every block, in other numbers: a move of 0 is what was there, and distances are kept."""
    first = SPACE.nearest({site.name: 0.4 if ".q" in site.name else 0.6 for site in SITES})
    env, _, _, candidate = play(moves, first=first)
    assert SPACE.met(candidate)
    assert env.gone == pytest.approx(SPACE.required, abs=1e-9)
    if not any(moves):
        assert candidate == first
    elif moves[0] == 0.5:
        begun = [LEVELS[level] for level in first[:2]]
        middle = (begun[0] * 40 + begun[1] * 100) / 140
        assert env.shares[0] == pytest.approx(middle + 0.5 * min(0.2, 0.7 - middle))


def test_the_state_is_the_share_of_all_weights_that_has_gone() -> None:
    env, _, seen, _ = play([1.0, -1.0, 0.0, 0.0])
    total = sum(site.size for site in SITES)
    assert [float(state[0]) for state in seen][:2] == pytest.approx([0, env.shares[0] * 140 / total])
    assert float(seen[-1][0]) == pytest.approx(0.5)
    assert env.observation_space.shape == (1,)


def test_features_are_depth_what_is_left_size_and_error() -> None:
    _, _, seen, _ = play([0.0, 0.0, 0.0, 0.0], features=("depth", "remaining", "size", "error"))
    assert [float(state[1]) for state in seen[:4]] == [0, 0.25, 0.5, 0.75]
    assert [float(state[2]) for state in seen[:4]] == pytest.approx([0] * 4, abs=1e-6)
    assert [float(state[3]) for state in seen[:4]] == pytest.approx([140 / 170, 150 / 170, 160 / 170, 1])
    assert float(seen[0][4]) == pytest.approx(math.log((1 + 2) / 2 * 0.5))


def test_the_feature_unit_says_which_one_moves() -> None:
    env, _, seen, _ = play([0.0, 0.0, 0.0, 0.0], features=("unit", "depth"))
    assert env.observation_space.shape == (6,)
    assert [state[1:].tolist() for state in seen[:4]] == [[*(float(other == unit) for other in range(4)), unit / 4] for unit in range(4)]


def test_units_to_come_are_dense() -> None:
    asked: list[tuple[Candidate, bool]] = []

    def watched(candidate: Candidate, partial: bool) -> float:
        asked.append((candidate, partial))
        return value(candidate, partial)

    play([0.0] * 4, watched)
    assert [partial for _, partial in asked] == [True, True, True, False]
    assert asked[0][0][2:] == (0,) * 6
    assert 0 not in asked[-1][0]


def test_differences_add_up_to_what_the_end_is_worth() -> None:
    _, dense, _, candidate = play([0.5, -0.5, 0.2, 0.0])
    _, sparse, _, _ = play([0.5, -0.5, 0.2, 0.0], reward="terminal")
    assert sum(dense) == pytest.approx(-value(candidate, False))
    assert sparse == pytest.approx([0, 0, 0, sum(dense)])


def test_the_scale_is_a_factor_on_rewards_and_on_nothing_else() -> None:
    _, plain, seen, candidate = play([0.5, -0.5, 0.2, 0.0])
    _, scaled, same, other = play([0.5, -0.5, 0.2, 0.0], scale=10.0)
    assert scaled == pytest.approx([10 * reward for reward in plain])
    assert candidate == other
    assert all((one == two).all() for one, two in zip(seen, same, strict=True))


def test_ratios_are_those_of_perplexities() -> None:
    _, rewards, _, candidate = play([0.0] * 4, reward="ratio")
    assert rewards[-1] == pytest.approx(math.exp(-value(candidate, False)))


def test_local_rewards_run_no_model_until_the_end() -> None:
    asked: list[bool] = []
    _, rewards, _, candidate = play([0.0] * 4, lambda candidate, partial: asked.append(partial) or 1.0, reward="local")
    assert asked == [False]
    errors = [ERRORS[index][candidate[index]] for index in (6, 7)]
    assert rewards[-1] == pytest.approx(-(errors[0] * 40 + errors[1] * 130) / 170)


@pytest.mark.parametrize(("per", "count"), [("block", 4), ("sublayer", 8), ("matrix", 8)])
def test_units_are_blocks_sublayers_or_matrices(per: Any, count: int) -> None:
    assert len(PruningEnv(SPACE, value, FIRST, per).units) == count


def test_infinite_values_are_bounded_for_the_agent() -> None:
    _, rewards, _, _ = play([0.0] * 4, lambda candidate, partial: math.inf)
    assert all(math.isfinite(reward) for reward in rewards)


def test_what_it_needs_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="expected 0 among them"):
        PruningEnv(Space(SITES, LEVELS[1:], Budget(0.5)), value, FIRST)
    bare = Space(SITES, LEVELS, Budget(0.5))
    with pytest.raises(RecipeError, match="reward = 'local' needs the error"):
        PruningEnv(bare, value, FIRST, reward="local")
    with pytest.raises(RecipeError, match="feature 'error' needs the error"):
        PruningEnv(bare, value, FIRST, features=("error",)).reset()
