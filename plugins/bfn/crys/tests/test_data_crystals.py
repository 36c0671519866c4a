"""Crystals as arrays: cells, parts, and conversion to other libraries."""

import numpy as np
import pytest
from headwater_bfn_crys.crystals import Crystals, cell_matrix, cell_parameters, cell_volume, wrap_unit
from hypothesis import given, settings
from hypothesis import strategies as st

EDGES = st.lists(st.floats(1.0, 20.0), min_size=3, max_size=3)
CORNERS = st.lists(st.floats(-1.0, 1.0), min_size=9, max_size=9)


def three():
    return Crystals.concatenate(
        [
            Crystals.of([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [3, 4, 5], [80, 95, 100], "salt"),
            Crystals.of([6], [[0.25, 0.5, 0.75]], [2, 2, 2], [60, 60, 60], "carbon"),
            Crystals.of([38, 22, 8, 8, 8], np.linspace(0, 1.4, 15).reshape(5, 3), [4, 4, 4], [90, 90, 90], "sto"),
        ]
    )


@given(CORNERS, EDGES)
@settings(max_examples=200, deadline=None)
def test_cell_parameters_and_matrix_are_inverse_and_keep_all_products(corners, edges):
    rows = np.array(corners).reshape(3, 3) + 3.0 * np.diag(edges)
    lengths, angles = cell_parameters(rows)
    matrix = cell_matrix(lengths, angles)
    # The canonical orientation is a rotation of the rows (or a rotation and a mirror): Gram matrices agree.
    np.testing.assert_allclose(matrix @ matrix.T, rows @ rows.T, atol=1e-9 * float((rows**2).sum()))
    np.testing.assert_allclose(cell_volume(lengths, angles), abs(np.linalg.det(rows)), rtol=1e-8)
    again = cell_parameters(matrix)
    np.testing.assert_allclose(again[0], lengths, rtol=1e-12)
    np.testing.assert_allclose(again[1], angles, atol=1e-9)


def test_the_canonical_orientation_is_pymatgens():
    from pymatgen.core import Lattice

    lengths, angles = [3.0, 4.5, 7.0], [70.0, 95.0, 110.0]
    expected = Lattice.from_parameters(*lengths, *angles).matrix
    np.testing.assert_allclose(cell_matrix(np.array(lengths), np.array(angles)), expected, atol=1e-12)


def test_coordinates_are_wrapped_below_one():
    wrapped = wrap_unit(np.array([-1e-20, 1.0, -0.25, 2.5, -1.0, 0.9999999]))
    np.testing.assert_array_equal(wrapped[[0, 1, 4]], 0.0)
    np.testing.assert_allclose(wrapped, [0, 0, 0.75, 0.5, 0, 0.9999999])
    assert (wrapped < 1).all()


@pytest.mark.parametrize(
    ("index", "expected"),
    [(slice(1, None), [1, 2]), ([2, 0], [2, 0]), (np.array([True, False, True]), [0, 2]), (slice(0, 0), []), ([], [])],
)
def test_a_part_holds_the_chosen_crystals_in_order(index, expected):
    whole = three()
    part = whole[index]
    assert part.ids == tuple(whole.ids[i] for i in expected)
    assert part.numbers.tolist() == [
        z for i in expected for z in whole.numbers[whole.offsets[i] : whole.offsets[i + 1]].tolist()
    ]
    assert len(part.frac) == part.num_atoms.sum()
    np.testing.assert_array_equal(part.lengths, whole.lengths[expected])


def test_one_position_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r"\[1:2\]"):
        three()[1]


def test_parts_joined_are_the_whole_and_names_are_kept_only_if_all_have_them():
    whole = three()
    again = Crystals.concatenate([whole[:1], whole[1:]])
    np.testing.assert_array_equal(again.frac, whole.frac)
    assert again.ids == whole.ids
    assert Crystals.concatenate([whole[:1], whole[1:].named(())]).ids == ()
    assert len(Crystals.concatenate([])) == 0


def test_structures_and_atoms_hold_the_same_crystals_and_come_back():
    whole = three()
    structures, atoms = whole.structures(), whole.atoms()
    for structure, one in zip(structures, atoms, strict=True):
        np.testing.assert_allclose(structure.lattice.matrix, one.cell.array, atol=1e-12)
        np.testing.assert_allclose(structure.cart_coords, one.positions, atol=1e-12)
        assert [site.specie.Z for site in structure] == one.numbers.tolist()
    for again in (Crystals.from_structures(structures, whole.ids), Crystals.from_atoms(atoms, whole.ids)):
        np.testing.assert_array_equal(again.numbers, whole.numbers)
        np.testing.assert_allclose(again.frac, whole.frac, atol=1e-12)
        np.testing.assert_allclose(again.lengths, whole.lengths)
        np.testing.assert_allclose(again.angles, whole.angles, atol=1e-9)
        assert again.ids == whole.ids


def test_what_is_counted_agrees_with_pymatgen():
    from headwater_bfn_crys.tasks.scoring import densities

    whole = three()
    structures = whole.structures()
    np.testing.assert_allclose(whole.volumes, [s.volume for s in structures])
    np.testing.assert_allclose(densities(whole), [s.density for s in structures], rtol=1e-3)
    assert whole.compositions == (((11, 1), (17, 1)), ((6, 1),), ((8, 3), (22, 1), (38, 1)))
    assert whole.formulas == ("Na1 Cl1", "C1", "O3 Ti1 Sr1")
    assert whole.crystal_of.tolist() == [0, 0, 1, 2, 2, 2, 2, 2]


def test_an_angle_of_nothing_gives_no_matrix_and_no_warning(recwarn):
    matrix = cell_matrix(np.ones((2, 3)), np.array([[0.0, 90, 90], [90, 90, 90]]))
    assert np.isnan(matrix[0]).any()
    np.testing.assert_allclose(matrix[1], np.eye(3), atol=1e-15)
    assert cell_volume(np.ones(3), np.array([30.0, 30.0, 120.0])) == 0.0
    assert not recwarn.list
