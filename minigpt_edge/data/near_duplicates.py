"""Finds texts that are like earlier ones, with MinHash."""

from __future__ import annotations

from collections.abc import Callable, Collection

PERMUTATIONS = 128


class NearDuplicates:
    """The sets of words or phrases seen so far; the seed is fixed, so only the sets and their order matter.

    Args:
        similarity: the share of their different members that two sets have in common to be found alike.
    """

    def __init__(self, similarity: float) -> None:
        from datasketch import MinHashLSH

        self._index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self._count = 0

    def add(self, members: Collection[str], is_alike: Callable[[int], bool] = lambda _: True) -> bool:
        """Remember a set unless it is like an earlier one; whether it was remembered.

        Args:
            is_alike: looks closer at a set that seems alike, given the number of sets remembered before it.
        """
        from datasketch import MinHash

        signature = MinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update_batch([member.encode() for member in members])
        if any(is_alike(number) for number in self._index.query(signature)):
            return False
        self._index.insert(self._count, signature, check_duplication=False)
        self._count += 1
        return True
