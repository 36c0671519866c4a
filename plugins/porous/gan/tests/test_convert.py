"""Official checkpoints: what is understood, and the one clear error for what is not."""

import pytest
import torch
from headwater import DataError
from headwater_porous_gan.convert import config_of, from_official, read_official, to_official
from headwater_porous_gan.networks import Discriminator, Generator


def saved(tmp_path, *modules, change=None, prefix=""):
    paths = []
    for i, module in enumerate(modules):
        state = {prefix + key: value for key, value in to_official(module).items()}
        if change is not None:
            change(state)
        paths.append(tmp_path / f"{i}.pth")
        torch.save(state, paths[-1])
    return paths


@pytest.mark.parametrize(("extra", "biases", "side"), [(0, False, 64), (2, False, 32), (0, True, 16), (1, True, 8)])
def test_all_variants_come_back_as_they_were(tmp_path, extra, biases, side):
    generator, discriminator = Generator(side, 5, 3, extra, biases), Discriminator(side, 2, extra)
    state, hyperparameters = read_official(saved(tmp_path, discriminator, generator, prefix="module."))
    made = from_official(state, **hyperparameters)
    z = torch.randn(2, 5, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(made["generator"](z), generator(z))
        assert torch.equal(made["discriminator"](generator(z)), discriminator(generator(z)))
    trainer = config_of(state, hyperparameters)["trainer"]
    assert trainer["side"] == side
    assert (trainer["nz"], trainer["ngf"], trainer["ndf"]) == (5, 3, 2)
    assert (trainer["extra_layers"], trainer["discriminator_extra_layers"], trainer["biases"]) == (extra, extra, biases)


def test_files_of_2017_have_no_counters(tmp_path):
    generator = Generator(16, 5, 3)

    def forget(state):
        for key in [k for k in state if "tracked" in k]:
            del state[key]

    state, _ = read_official(saved(tmp_path, generator, change=forget))
    assert set(from_official(state)) == {"generator"}


def swap(key, value):
    def change(state):
        state[key] = value(state.pop(key)) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("main.4.running_var"), "lacks main.4.running_var"),
        (lambda s: s.update({"main.20.weight": torch.zeros(3)}), "no place for main.20.weight"),
        (lambda s: s.update({"main.2.weight": torch.zeros(3)}), "no place for main.2.weight"),
        (lambda s: s.update({"head.weight": torch.zeros(3)}), "head.weight"),
        (lambda s: s.update({"main.9.weight": torch.zeros(1, 1, 4, 4, 4)}), "main.0.weight has the shape"),
        (swap("main.3.weight", lambda w: w[:, :2]), "main.3.weight"),
        (swap("main.3.weight", lambda w: w[..., :3]), "main.3.weight"),
        (swap("main.6.weight", lambda w: w.expand(-1, 3, -1, -1, -1)), "main.6.weight"),
        (swap("main.1.bias", lambda w: w[:2]), "main.1.bias has the shape"),
        (swap("main.1.weight", lambda w: w * float("nan")), "main.1.weight holds values"),
        (swap("main.0.weight", "text"), "main.0.weight is a str"),
        (lambda s: s.pop("main.0.weight"), "main.0.weight"),
        (lambda s: s.update({"main.0.bias": torch.zeros(12)}), "lacks main.3.bias"),
        (lambda s: s.update({"module.main.0.weight": s["main.0.weight"]}), "twice"),
        (lambda s: s.clear(), "not a state dict"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_key(tmp_path, change, said):
    paths = saved(tmp_path, Generator(16, 5, 6), change=change)
    with pytest.raises(DataError, match=said) as error:
        from_official(read_official(paths)[0])
    assert len(str(error.value).splitlines()) == 1


def test_networks_that_do_not_belong_together_are_refused(tmp_path):
    state, _ = read_official(saved(tmp_path, Generator(16, 5, 3), Discriminator(32, 2)))
    with pytest.raises(DataError, match=r"16\^3.*32\^3"):
        from_official(state)
    (alone,) = saved(tmp_path, Discriminator(32, 2))
    state, _ = read_official([alone])
    with pytest.raises(DataError, match="generator's file is needed"):
        from_official(state)
    with pytest.raises(DataError, match="second generator"):
        read_official(saved(tmp_path, Generator(16, 5, 3), Generator(16, 5, 3)))
