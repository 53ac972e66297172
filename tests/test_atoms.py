"""Classes of united atoms: those of a plain union-find, each labeled by its lowest atom, in few turns."""

from __future__ import annotations

import time

import pytest
import torch

from compress.graph.channels.atoms import Atoms


def components(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Label of every atom, by hand."""
    label = list(range(count))
    for a, b in edges:
        old, new = max(label[a], label[b]), min(label[a], label[b])
        label = [new if x == old else x for x in label]
    return label


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_the_connected_components(seed: int):
    random = torch.Generator().manual_seed(seed)
    atoms, count = Atoms(), 60
    atoms.new(count)
    edges: list[tuple[int, int]] = []
    for _ in range(4):
        a, b = (torch.randint(0, count, (12,), generator=random) for _ in range(2))
        atoms.unite(a, b)
        edges += list(zip(a.tolist(), b.tolist(), strict=True))
    assert atoms.classes().tolist() == components(count, edges)


def test_uniting_along_axes_repeats_the_first_entry():
    atoms = Atoms()
    t = atoms.new(6).view(2, 3)
    assert torch.equal(atoms.unite_along(t, [1]), torch.tensor([[0, 0, 0], [3, 3, 3]]))
    assert atoms.classes().tolist() == [0, 0, 0, 3, 3, 3]
    assert torch.equal(atoms.unite_along(t, [0, 1]), torch.zeros(2, 3, dtype=torch.long))


def test_atoms_that_nothing_unites_are_classes_of_their_own():
    atoms = Atoms()
    atoms.new(3)
    atoms.unite(torch.tensor([1]), torch.tensor([1]))
    assert atoms.edges == 0 and atoms.classes().tolist() == [0, 1, 2]


@pytest.mark.parametrize("hub", [0, 19_999])
def test_an_atom_that_many_hang_on_costs_no_more(hub: int):
    atoms = Atoms()
    every = atoms.new(20_000)
    atoms.unite(every[hub].expand(20_000), every)
    chain = Atoms()
    chain.unite(links := chain.new(20_000), links.roll(1))
    start = time.process_time()
    assert not bool(atoms.classes().any()) and not bool(chain.classes().any())
    assert time.process_time() - start < 0.5  # some milliseconds; seconds where each turn settles one atom
