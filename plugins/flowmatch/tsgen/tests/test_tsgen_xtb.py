"""The recipe of reactions, and the chemistry under it."""

import numpy as np
import pytest
from ase import Atoms, units
from headwater.errors import DataError, UsageError
from headwater_flow_tsgen import chemistry
from headwater_flow_tsgen.chemistry import check_closed_shell, hessian, idpp, saddle, vibrations
from headwater_flow_tsgen.tasks import xtb
from headwater_flow_tsgen.tasks.formats import read
from headwater_flow_tsgen.tasks.reactions import XtbReactions, XtbReactionsConfig

pytest.importorskip("rdkit")
pytest.importorskip("tblite")
pytest.importorskip("sella")


class Springs:
    """Harmonic forces between all pairs of atoms, whose Hessian is known."""

    def __init__(self, k, rest):
        self.k, self.rest = k, rest

    def get_forces(self, atoms):
        x, out = atoms.positions, np.zeros_like(atoms.positions)
        for i in range(len(x)):
            for j in range(len(x)):
                if i != j:
                    d = x[i] - x[j]
                    r = np.linalg.norm(d)
                    out[i] -= self.k * (r - self.rest) * d / r
        return out


def springs(z, k, rest):
    from ase.calculators.calculator import Calculator, all_changes

    class Wrapped(Calculator):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=("forces",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            self.results = {"energy": 0.0, "forces": Springs(k, rest).get_forces(atoms)}

    atoms = Atoms(z, [[0.0, 0, 0], [0.0, 0, rest]])
    atoms.calc = Wrapped()
    return atoms


def test_wavenumbers_of_a_diatomic_are_those_of_its_spring():
    atoms = springs([6, 8], 100.0, 1.1)
    wavenumbers, modes = vibrations(atoms, hessian(atoms))
    mu = 1 / (1 / atoms.get_masses()).sum() * units._amu
    k = 100.0 * units._e * 1e20
    expected = np.sqrt(k / mu) / (2 * np.pi * units._c * 100)
    assert wavenumbers[-1] == pytest.approx(expected, rel=1e-5)
    assert np.abs(wavenumbers[:5]).max() < 1.0
    stretch = modes[-1]
    assert abs(stretch[0, 2]) > abs(stretch[1, 2]) > 0.1
    assert np.abs(stretch[:, :2]).max() < 1e-6


def test_idpp_keeps_the_ends_and_no_atoms_meet():
    rng = np.random.default_rng(0)
    a = 2.0 * rng.normal(size=(5, 3))
    b = a[[1, 0, 2, 3, 4]]
    path = idpp(np.full(5, 6), a, b, 5)
    np.testing.assert_allclose(path[0], a)
    np.testing.assert_allclose(path[-1], b)
    middle = path[2]
    assert np.linalg.norm(middle[0] - middle[1]) > 0.3


def test_closed_shells():
    assert check_closed_shell(np.array([6, 8])) is None
    assert "odd number" in check_closed_shell(np.array([1, 8]))
    assert "charge is 1" in check_closed_shell(np.array([6, 8]), 1)


def test_edits_keep_every_valence():
    from rdkit import Chem

    found = xtb.edits("CC=O")
    assert {"C=CO", "C=C=O.[H][H]"} <= {candidate.product for candidate in found}
    for candidate in found:
        mol = Chem.MolFromSmiles(candidate.product)
        assert mol is not None
        assert sum(change for _, _, change in candidate.changes) == 0
        atoms = [i for i, j, change in candidate.changes for i in (i, j)]
        assert all(sum(c for i, j, c in candidate.changes if a in (i, j)) == 0 for a in atoms)
    assert [c.key() for c in found] == [c.key() for c in xtb.edits("CC=O")]
    assert found[0].key() != found[0].key(1)
    assert found[-1].product.count("[H][H]") == 1


def test_one_real_reaction():
    """Hydrogen cyanide to hydrogen isocyanide: one hydrogen goes over to the other side."""
    candidates = [c for c in xtb.edits("CC#N") if c.product == "C=C=N"]
    reaction = xtb.attempt(candidates[0])
    assert reaction.info["imaginary_cm1"] < -80
    assert reaction.barrier == pytest.approx(86.9, abs=1.0)
    found = saddle(reaction.numbers, reaction.ts)
    assert found.converged
    assert found.steps < 10


def test_making_goes_on_where_it_stopped(tmp_path, monkeypatch):
    reaction = XtbReactions(XtbReactionsConfig()).reactions()[0]
    tried = []

    def attempt(candidate, *, seed, highest_barrier):
        tried.append(candidate)
        if len(tried) % 3 == 0:
            return "no luck"
        from dataclasses import replace

        info = {**reaction.info, "reverse_barrier_kcal": float(len(tried))}
        return replace(reaction, name=candidate.key(), barrier=5.0 * len(tried), info=info)

    class Here:
        """A process pool that works in this process."""

        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def submit(self, work, *arguments):
            if len(tried) == 2:
                raise KeyboardInterrupt
            from concurrent.futures import Future

            future = Future()
            future.set_result(work(*arguments))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(xtb, "attempt", attempt)
    monkeypatch.setattr(xtb, "ProcessPoolExecutor", Here)
    settings = {"count": 4, "most": 6, "workers": 1, "seed": 0, "highest_barrier": 150.0}
    with pytest.raises(KeyboardInterrupt):
        xtb.make(tmp_path / "out", ["CC=O", "C=CO"], **settings)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.parts" / "attempts").iterdir())) == 2
    tried.append(None)  # past the interruption
    path = xtb.make(tmp_path / "out", ["CC=O", "C=CO"], **settings)
    assert len(read(path)) == 4
    assert len({c.key() for c in tried if c is not None}) == len([c for c in tried if c is not None])
    assert not (tmp_path / "out.parts").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[O-]C", "charge -1"),
        ("[CH3]", "unpaired electrons"),
        ("c1cc", "cannot read the SMILES"),
        ("", "has no SMILES"),
    ],
)
def test_molecules_that_the_recipe_cannot_compute_are_refused(tmp_path, line, message):
    (tmp_path / "m.smi").write_text(f"{line}\n")
    with pytest.raises(DataError, match=rf"m\.smi.*{message}"):
        XtbReactions(XtbReactionsConfig(molecules=str(tmp_path / "m.smi"))).make(tmp_path / "out")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(chemistry, "have", lambda *modules: False)
    with pytest.raises(UsageError, match=r"needs tblite: pip install 'headwater-flow-tsgen\[chem\]'"):
        chemistry.calculator()
