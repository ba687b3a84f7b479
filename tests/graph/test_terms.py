from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.graph.terms import (
    EMPTY,
    NATURAL,
    ONE,
    Atom,
    Cat,
    Incompatible,
    Prod,
    Reason,
    atoms,
    axis,
    bind,
    concatenation,
    freeze,
    is_constant,
    kept,
    length,
    mark,
    owners,
    product,
    resolve,
    sizes,
    span,
    split_cat,
    split_prod,
    unify,
)

RULE = Reason('rule', 'an operator')


def grid(term):
    """Return for each position of an axis the (atom, index) pairs that it is made of, the slow way."""
    term = resolve(term)
    if type(term) is Atom:
        return [((term, index),) for index in range(term.size)]
    if type(term) is Prod:
        return [sum(parts, ()) for parts in itertools.product(*map(grid, term.factors))]
    return [place for segment in term.segments for place in grid(segment)]


def kept_slowly(term, keep):
    return [
        place for place, parts in enumerate(grid(term)) if all(atom not in keep or index in keep[atom] for atom, index in parts)
    ]


def random_keep(draw, terms):
    """Choose sorted indices to keep for every atom that may change."""
    keep = {}
    for atom in dict.fromkeys(atom for term in terms for atom in atoms(term)):
        if atom.frozen is None:
            chosen = draw(st.sets(st.integers(0, atom.size - 1), min_size=1, max_size=atom.size))
            keep[atom] = torch.tensor(sorted(chosen))
    return keep


def as_sets(keep):
    return {atom: set(index.tolist()) for atom, index in keep.items()}


class TestAxis:
    @pytest.mark.parametrize(('size', 'wanted'), [(0, EMPTY), (1, ONE)])
    def test_sizes_without_a_choice(self, size, wanted):
        assert axis(size) is wanted

    def test_an_atom(self):
        found = axis(5, RULE)
        assert type(found) is Atom
        assert (found.size, found.frozen) == (5, RULE)

    def test_text(self):
        one, two = Atom(3), Atom(4, RULE)
        assert repr(product([one, two])) == f'(a{one.serial}:3 * !a{two.serial}:4)'
        assert repr(concatenation([one, two])) == f'[a{one.serial}:3 + !a{two.serial}:4]'
        assert repr(ONE) == '1'

    def test_text_of_a_bound_atom_is_that_of_what_it_stands_for(self):
        one, two = Atom(3), Atom(3)
        unify(one, two)
        assert repr(one) == repr(two)


class TestReason:
    def test_names_operator_and_module(self):
        assert str(Reason('rule', 'my.op', 'block.1')) == "no axis rule for my.op in 'block.1'"
        assert str(Reason('input')) == 'an axis of the input'

    def test_a_reason_of_the_model_replaces_one_of_the_inference(self):
        one = Atom(3, RULE)
        freeze(one, Reason('output'))
        assert one.frozen.kind == 'output'
        freeze(one, RULE)
        assert one.frozen.kind == 'output'
        assert 'rule' not in NATURAL

    def test_freezes_every_atom(self):
        one, two = Atom(3), Atom(4)
        assert not is_constant(product([one, two]))
        freeze(product([one, two]), RULE)
        assert is_constant(concatenation([one, two]))
        assert is_constant(ONE)
        assert is_constant(EMPTY)


class TestResolve:
    def test_flattens_products_and_concatenations(self):
        one, two, three = Atom(2), Atom(3), Atom(4)
        assert product([product([one, two]), ONE, three]).factors == (one, two, three)
        assert concatenation([concatenation([one, EMPTY]), concatenation([two, three])]).segments == (one, two, three)

    def test_a_product_keeps_concatenations_and_the_other_way_round(self):
        one, two, three = Atom(2), Atom(3), Atom(4)
        mixed = product([concatenation([one, two]), three])
        assert [type(factor) for factor in mixed.factors] == [Cat, Atom]
        assert mixed.size == 20

    def test_of_one_part_is_the_part(self):
        one = Atom(4)
        assert product([ONE, one]) is one
        assert concatenation([EMPTY, one]) is one
        assert product([]) is ONE
        assert concatenation([]) is EMPTY

    def test_a_size_of_one_stays_in_a_concatenation(self):
        assert concatenation([ONE, Atom(3)]).segments[0] is ONE

    def test_long_chains_do_not_recurse(self):
        chain = [Atom(4) for _ in range(5000)]
        for one, two in itertools.pairwise(chain):
            bind(one, two)
        assert resolve(chain[0]) is chain[-1]
        assert chain[2500].bound is chain[-1]

    def test_follows_bindings_inside(self):
        one, two = Atom(6), Atom(4)
        whole = product([one, two])
        left, right = split_prod(one, 2)
        assert resolve(whole).factors == (left, right, two)


class TestSplitProd:
    def test_of_an_atom_refines_every_use_of_it(self):
        one = Atom(12)
        other = concatenation([one, Atom(2)])
        outer, inner = split_prod(one, 3)
        assert (outer.size, inner.size) == (3, 4)
        assert [part.size for part in atoms(other)] == [3, 4, 2]

    def test_by_one_and_by_all(self):
        one = Atom(12)
        assert split_prod(one, 1) == (ONE, one)
        assert split_prod(one, 12) == (one, ONE)
        assert one.bound is None

    def test_an_empty_axis_has_no_rows(self):
        with pytest.raises(Incompatible):
            split_prod(EMPTY, 2)

    @pytest.mark.parametrize('outer', [0, -1, 5, 24])
    def test_by_something_else(self, outer):
        with pytest.raises(Incompatible):
            split_prod(Atom(12), outer)

    def test_at_a_boundary_of_factors(self):
        one, two, three = Atom(2), Atom(3), Atom(4)
        outer, inner = split_prod(product([one, two, three]), 6)
        assert outer.factors == (one, two)
        assert inner is three

    def test_inside_a_factor(self):
        one, two = Atom(2), Atom(6)
        outer, inner = split_prod(product([one, two]), 4)
        assert [atom.size for atom in atoms(outer)] == [2, 2]
        assert inner.size == 3
        assert resolve(two).size == 6

    def test_across_factors_that_do_not_divide(self):
        with pytest.raises(Incompatible):
            split_prod(product([Atom(2), Atom(3)]), 3)

    def test_segments_of_whole_rows_share_the_inner_factor(self):
        one, two = Atom(8), Atom(4)
        outer, inner = split_prod(concatenation([one, two]), 6)
        assert [atom.size for atom in atoms(outer)] == [4, 2]
        assert inner.size == 2
        assert list(atoms(one))[1] is list(atoms(two))[1] is inner

    def test_segments_that_cut_rows_make_all_rows_alike(self):
        one, two = Atom(3), Atom(5)  # rows of four positions
        outer, inner = split_prod(concatenation([one, two]), 2)
        assert outer.size == 2
        assert not list(atoms(outer))
        assert inner.size == 4
        assert grid(concatenation([one, two])) == grid(inner) * 2

    def test_keeps_reason_and_marks(self):
        one = Atom(12, RULE)
        mark(one, 'heads')
        span(one, 'softmax')
        parts = split_prod(one, 3)
        assert all(part.frozen is RULE and part.marks == {'heads'} and part.spans == {'softmax'} for part in parts)


class TestSplitCat:
    def test_of_an_atom(self):
        one = Atom(12)
        left, right = split_cat(one, 5)
        assert resolve(one).segments == (left, right)

    def test_at_the_ends(self):
        one = Atom(4)
        assert split_cat(one, 0) == (EMPTY, one)
        assert split_cat(one, 4) == (one, EMPTY)
        assert split_cat(one, 9) == (one, EMPTY)
        assert split_cat(one, -2) == (EMPTY, one)

    def test_inside_a_segment(self):
        one, two = Atom(4), Atom(6)
        left, right = split_cat(concatenation([one, two]), 7)
        assert [atom.size for atom in atoms(left)] == [4, 3]
        assert right.size == 3

    def test_of_a_product_by_whole_rows(self):
        one, two = Atom(4), Atom(3)
        left, right = split_cat(product([one, two]), 6)
        assert [atom.size for atom in atoms(left)] == [2, 3]
        assert list(atoms(left))[1] is list(atoms(right))[1] is two

    def test_of_a_product_inside_a_row(self):
        one, two = Atom(4), Atom(3)
        whole = product([one, two])
        left, right = split_cat(whole, 4)
        assert (left.size, right.size) == (4, 8)
        assert grid(left) + grid(right) == grid(whole)


class TestUnify:
    def test_an_atom_becomes_the_other(self):
        one, two = Atom(12), Atom(12)
        outer, inner = split_prod(one, 3)
        unify(two, one)
        assert list(atoms(two)) == [outer, inner]

    def test_reasons_reach_what_an_atom_stands_for(self):
        one, two = Atom(12, RULE), Atom(12)
        parts = split_prod(two, 3)
        unify(one, two)
        assert all(part.frozen is RULE for part in parts)

    def test_products_with_a_common_refinement(self):
        one, two = product([Atom(2), Atom(6)]), product([Atom(4), Atom(3)])
        unify(one, two)
        assert grid(one) == grid(two)
        assert [atom.size for atom in atoms(one)] == [2, 2, 3]

    def test_products_without_one(self):
        one, two = product([Atom(2), Atom(3)]), product([Atom(3), Atom(2)])
        unify(one, two, RULE)
        assert is_constant(one)
        assert is_constant(two)
        assert {atom.frozen for atom in atoms(one)} == {RULE}

    def test_without_a_reason_it_is_a_layout(self):
        one, two = product([Atom(2), Atom(3)]), product([Atom(3), Atom(2)])
        unify(one, two)
        assert next(atoms(one)).frozen.kind == 'layout'

    def test_concatenations_cut_at_other_places(self):
        one, two = concatenation([Atom(3), Atom(5)]), concatenation([Atom(6), Atom(2)])
        unify(one, two)
        assert grid(one) == grid(two)
        assert [atom.size for atom in atoms(one)] == [3, 3, 2]

    def test_a_product_and_a_concatenation(self):
        one, two = product([Atom(4), Atom(3)]), concatenation([Atom(3), Atom(9)])
        unify(one, two)
        assert grid(one) == grid(two)

    def test_a_concatenation_in_the_other_order_ties_the_segments_crosswise(self):
        one, two = Atom(4), Atom(4)
        unify(concatenation([one, two]), concatenation([two, one]))
        assert resolve(one) is resolve(two)

    def test_a_product_in_the_other_order(self):
        one, two = Atom(4), Atom(4)
        unify(product([one, two]), product([two, one]))
        assert resolve(one) is resolve(two)

    def test_axes_of_length_one_stay(self):
        unify(ONE, ONE)
        assert ONE.factors == ()


class TestKept:
    def test_keeps_the_given_order(self):
        one = Atom(4)
        assert kept(one, {one: torch.tensor([3, 0])}).tolist() == [3, 0]
        assert kept(concatenation([ONE, one]), {one: torch.tensor([3, 0])}).tolist() == [0, 4, 1]

    def test_of_a_product(self):
        heads, dims = Atom(3), Atom(4)
        found = kept(product([heads, dims]), {heads: torch.tensor([2, 0]), dims: torch.tensor([1, 3])})
        assert found.tolist() == [9, 11, 1, 3]

    def test_of_an_atom_that_occurs_twice(self):
        one = Atom(3)
        assert kept(concatenation([one, one]), {one: torch.tensor([0, 2])}).tolist() == [0, 2, 3, 5]
        assert kept(product([one, one]), {one: torch.tensor([0, 2])}).tolist() == [0, 2, 6, 8]

    def test_of_atoms_that_stay(self):
        assert kept(product([Atom(2), Atom(3)]), {}).tolist() == list(range(6))

    def test_lengths_and_sizes(self):
        heads, dims, rest = Atom(3), Atom(4), Atom(5)
        whole = concatenation([product([heads, dims]), rest])
        assert length(whole, {heads: 2, rest: 1}) == 9
        assert sizes([whole, ONE, EMPTY]) == (17, 1, 0)

    def test_owners(self):
        heads, dims, rest = Atom(2), Atom(2), Atom(1)
        whole = concatenation([rest, product([heads, dims])])
        assert owners(whole, dims).tolist() == [-1, 0, 1, 0, 1]
        assert owners(whole, heads).tolist() == [-1, 0, 0, 1, 1]
        assert owners(EMPTY, heads).tolist() == []


@st.composite
def nested(draw, depth=3):
    """A nested axis of products and concatenations over a few atoms, some of which repeat."""
    pool = draw(st.lists(st.builds(Atom, st.integers(2, 4)), min_size=1, max_size=4))

    def term(depth):
        kind = draw(st.sampled_from(['atom', 'prod', 'cat'] if depth else ['atom']))
        if kind == 'atom':
            return draw(st.sampled_from([*pool, ONE]))
        parts = [term(depth - 1) for _ in range(draw(st.integers(1, 3)))]
        return product(parts) if kind == 'prod' else concatenation(parts)

    return term(draw(st.integers(0, depth)))


class TestRandom:
    @given(nested(), st.data())
    @settings(max_examples=60, deadline=None)
    def test_kept_is_the_slow_way(self, term, data):
        if term.size > 500:
            return
        keep = random_keep(data.draw, [term])
        assert kept(term, keep).tolist() == kept_slowly(term, as_sets(keep))
        assert length(term, {atom: len(index) for atom, index in keep.items()}) == len(kept(term, keep))
        assert len(grid(term)) == term.size
        for atom in dict.fromkeys(atoms(term)):
            first = [next((index for owner, index in parts if owner is atom), -1) for parts in grid(term)]
            assert owners(term, atom).tolist() == first

    @given(nested(), st.data())
    @settings(max_examples=60, deadline=None)
    def test_splitting_keeps_the_positions(self, term, data):
        if not 2 <= term.size <= 200:
            return
        if data.draw(st.booleans()):
            left, right = split_cat(term, data.draw(st.integers(0, term.size)))
            assert grid(left) + grid(right) == grid(term)
            return
        outer = data.draw(st.sampled_from([n for n in range(1, term.size + 1) if term.size % n == 0]))
        try:
            left, right = split_prod(term, outer)
        except Incompatible:
            return
        assert (left.size, right.size) == (outer, term.size // outer)
        assert grid(product([left, right])) == grid(term) or _same_kept(data.draw, product([left, right]), term)

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_no_equality_is_ever_lost(self, data):
        """Whatever was said to be the same axis keeps the same positions, however it is refined later."""
        draw = data.draw
        pool = [Atom(draw(st.sampled_from([4, 6, 8, 12, 24]))) for _ in range(4)]
        same = []
        for _ in range(draw(st.integers(1, 12))):
            term = draw(st.sampled_from(pool))
            action = draw(st.sampled_from(['prod', 'cat', 'join', 'times', 'unify', 'unify', 'freeze']))
            other = draw(st.sampled_from(pool))
            if action == 'prod':
                try:
                    left, right = split_prod(term, draw(st.sampled_from([1, 2, 3, 4])))
                except Incompatible:
                    continue
                pool += [left, right]
                same.append((term, product([left, right])))
            elif action == 'cat':
                left, right = split_cat(term, draw(st.integers(0, term.size)))
                pool += [left, right]
                same.append((term, concatenation([left, right])))
            elif action == 'join' and term.size + other.size <= 60:
                pool.append(concatenation([resolve(term), resolve(other)]))
            elif action == 'times' and 0 < term.size * other.size <= 60:
                pool.append(product([resolve(term), resolve(other)]))
            elif action == 'unify' and (equals := [one for one in pool if one.size == term.size and one is not term]):
                other = draw(st.sampled_from(equals))
                unify(term, other)
                same.append((term, other))
            elif action == 'freeze':
                freeze(term, RULE)
        before = [term.size for term in pool]
        assert [resolve(term).size for term in pool] == before
        assert [len(grid(term)) for term in pool] == before
        keep = random_keep(draw, pool)
        for one, two in same:
            assert kept(one, keep).tolist() == kept(two, keep).tolist()
            assert kept(one, keep).tolist() == kept_slowly(one, as_sets(keep))


def _same_kept(draw, one, two):
    keep = random_keep(draw, [one, two])
    return kept(one, keep).tolist() == kept(two, keep).tolist()
