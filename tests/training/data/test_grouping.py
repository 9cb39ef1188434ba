"""Near-duplicates are found and stay on one side of a split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.grouping import merge_groups, near_duplicate_groups, split_groups


def textures(n: int, seed: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (n, 8, 8, channels), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_noisy_copy_is_in_its_originals_group_and_others_are_not(channels: int) -> None:
    x = textures(30, 0, channels)
    noise = np.random.default_rng(1).integers(-4, 5, x.shape)
    copies = (x.astype(int) + noise).astype(np.uint8)
    groups = near_duplicate_groups(np.concatenate([x, copies]))
    assert (groups[:30] == groups[30:]).all()
    assert len(set(groups.tolist())) == 30


def test_another_exposure_is_the_same_group_only_where_asked() -> None:
    x = textures(10, 2)
    darker = (x * 0.6).astype(np.uint8)
    both = np.concatenate([x, darker])
    assert near_duplicate_groups(both).max() + 1 == 20
    groups = near_duplicate_groups(both, any_exposure=True)
    assert groups.max() + 1 == 10
    assert (groups[:10] == groups[10:]).all()


def test_a_chain_of_small_steps_is_one_group_whatever_the_order() -> None:
    level = np.arange(100, 140, dtype=np.uint8)
    x = np.broadcast_to(level[:, None, None, None], (40, 32, 32, 1))
    shuffled = x[np.random.default_rng(0).permutation(40)]
    assert near_duplicate_groups(shuffled).max() == 0


def test_groups_do_not_depend_on_the_size_of_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([textures(40, 3), textures(40, 3)[::-1]])
    whole = near_duplicate_groups(x)
    monkeypatch.setattr("training.data.grouping._CHUNK", 7)
    assert (near_duplicate_groups(x) == whole).all()


def test_merged_groups_keep_together_what_either_does() -> None:
    a, b = np.array([0, 0, 1, 2, 3, 3]), np.array([5, 6, 6, 7, 8, 9])
    assert merge_groups(a, b).tolist() == [0, 0, 0, 1, 2, 2]


@given(
    st.lists(st.integers(0, 30), min_size=40, max_size=200),
    st.integers(0, 1000),
)
def test_no_group_is_in_two_splits_and_no_item_is_lost(groups: list[int], seed: int) -> None:
    names = np.array(groups)
    parts = split_groups(names, (0.6, 0.2, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    seen = [group for p in parts for group in set(names[p].tolist())]
    assert len(seen) == len(set(seen))


def test_splits_come_near_their_shares_and_follow_the_seed() -> None:
    groups = np.repeat(np.arange(300), 3)
    first, again, other = (split_groups(groups, (0.6, 0.2, 0.2), s) for s in (0, 0, 1))
    assert [len(p) for p in first] == pytest.approx([540, 180, 180], abs=6)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert set(first[1].tolist()) != set(other[1].tolist())


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_groups(np.arange(5), (0.5, 0.2), 0)
