import tomllib

import pytest
import torch
from headwater.config import Config, FitConfig, merge, parse_assignments, read_toml, to_toml, validate
from headwater.errors import ConfigError, UsageError
from headwater.resolve import plan


class Inner(Config):
    size: int = 3


class Outer(Config):
    inner: Inner = Inner()
    name: str = "x"
    rate: float | None = None


def test_assignments_are_read_as_toml_values_else_as_strings():
    tables = parse_assignments(["fit.max_steps=7", "trainer.a.b=[1, 2]", "task.path=/some/file", "task.on=true"])
    assert tables == {
        "fit": {"max_steps": 7},
        "trainer": {"a": {"b": [1, 2]}},
        "task": {"path": "/some/file", "on": True},
    }


def test_null_is_nothing_and_none_is_a_word():
    assert parse_assignments(["fit.ema=null", "sampler.margin=none"]) == {
        "fit": {"ema": None},
        "sampler": {"margin": "none"},
    }


@pytest.mark.parametrize("text", ["fit", "fit.max_steps", "fit.=3", "=3", ".a=3"])
def test_an_assignment_that_cannot_be_read_is_quoted(text):
    with pytest.raises(ConfigError, match=r"write it as|names no setting"):
        parse_assignments([text])


def test_an_unknown_part_names_the_near_one():
    with pytest.raises(ConfigError, match="did you mean 'trainer'"):
        parse_assignments(["trianer.lr=1"])


def test_errors_name_field_value_and_what_would_do():
    with pytest.raises(ConfigError, match=r"fit\.max_stps is no setting; did you mean 'max_steps'"):
        validate(FitConfig, {"max_stps": 3}, "fit")
    with pytest.raises(ConfigError, match=r"fit\.max_steps = -3: .*greater than or equal to 0"):
        validate(FitConfig, {"max_steps": -3}, "fit")
    with pytest.raises(ConfigError, match=r"task\.inner\.sise is no setting; did you mean 'size'"):
        validate(Outer, {"inner": {"sise": 1}}, "task")
    with pytest.raises(ConfigError, match=r"fit\.precision = '8-bit': .*'32-true'"):
        validate(FitConfig, {"precision": "8-bit"}, "fit")


def test_toml_round_trip_keeps_every_value():
    config = Outer(inner=Inner(size=9), name='né "quoted"', rate=1e-7)
    assert Outer(**tomllib.loads(to_toml({"task": config}))["task"]) == config
    assert Outer(**tomllib.loads(to_toml({"task": Outer()}))["task"]) == Outer()


def test_later_layers_win_and_tables_merge():
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"b": 4}) == {"a": {"x": 1, "y": 3}, "b": 4}


def test_a_bad_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("fit = [")
    with pytest.raises(ConfigError, match=r"bad\.toml is no valid TOML"):
        read_toml(bad)
    bad.write_text("[fitt]\nmax_steps = 1\n")
    with pytest.raises(ConfigError, match=r"\[fitt\] is no part"):
        read_toml(bad)


def test_a_plan_layers_preset_file_and_overrides(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[trainer]\nlearning_rate = 0.5\nbatch_size = 2\n")
    made = plan("toy", preset="wide", config=file, overrides={"trainer": {"batch_size": 7}})
    assert (made.config["trainer"].width, made.config["trainer"].learning_rate) == (9, 0.5)
    assert made.config["trainer"].batch_size == 7


def test_unknown_names_say_what_is_near():
    with pytest.raises(UsageError, match="did you mean 'toy'"):
        plan("toyy")
    with pytest.raises(UsageError, match="did you mean 'toy-numbers'"):
        plan("toy", task="toy-number")
    with pytest.raises(UsageError, match="did you mean 'wide'"):
        plan("toy", preset="wyde")
    with pytest.raises(UsageError, match="did you mean 'refine'"):
        plan("toy", stage="refin")
    with pytest.raises(UsageError, match="headwater-bfn-crys"):
        plan("bfn-crys")


def test_making_a_plan_uses_no_randomness():
    before = torch.get_rng_state()
    plan("toy")
    assert torch.equal(before, torch.get_rng_state())
