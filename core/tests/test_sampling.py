import json
import os
import shutil

import headwater
import pytest
import torch
from fakes import command
from headwater import registry, sampling
from headwater.errors import ConfigError, DataError, HeadwaterError, RunError, UsageError
from toy import Double, Numbers, ToySampler

FIT = {"max_steps": 3, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return headwater.train("toy", tmp_path_factory.mktemp("run") / "run", overrides={"fit": FIT}).path


@pytest.fixture
def model(run):
    return headwater.load(run, device="cpu")


@pytest.fixture
def hook(request):
    """Register an object with hooks for one test."""

    def add(found, name="hooks"):
        registry.register(found, name=name)
        request.addfinalizer(lambda: registry.unregister(name))
        return found

    return add


def numbers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def count_blocks(monkeypatch):
    computed = []
    block = ToySampler.block
    monkeypatch.setattr(ToySampler, "block", lambda self, k, g, c: (computed.append(k), block(self, k, g, c))[1])
    return computed


# What is sampled


def test_the_first_n_of_more_samples_are_the_same(model, tmp_path):
    seven = numbers(model.sample_to(tmp_path / "7.jsonl", 7))
    for n in (1, 3, 4, 6):
        assert numbers(model.sample_to(tmp_path / f"{n}.jsonl", n)) == seven[:n]


def test_the_seed_and_nothing_else_changes_the_samples(model, tmp_path):
    first = numbers(model.sample_to(tmp_path / "a.jsonl", 5, seed=1))
    torch.manual_seed(123)
    assert numbers(model.sample_to(tmp_path / "b.jsonl", 5, seed=1)) == first
    assert numbers(model.sample_to(tmp_path / "c.jsonl", 5, seed=2)) != first


def test_samples_in_python_are_those_on_disk(model, tmp_path):
    blocks = list(model.sample(7, seed=3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    written = numbers(model.sample_to(tmp_path / "a.jsonl", 7, seed=3))
    assert torch.allclose(torch.cat(blocks), torch.tensor(written), atol=1e-6)


@pytest.mark.parametrize("form", [torch.Tensor, list, tuple])
def test_metrics_are_those_of_all_samples_together_and_no_mean_over_blocks(model, monkeypatch, form):
    block = ToySampler.block
    if form is not torch.Tensor:
        monkeypatch.setattr(ToySampler, "block", lambda *a: form(block(*a).tolist()))
    seen = []
    monkeypatch.setattr(Numbers, "metrics", lambda self, s: seen.append(len(s)) or {"last": float(s[-1])})
    scores = model.evaluate(7, seed=3)
    assert seen == [7]
    assert scores["last"] == pytest.approx(float(list(model.sample(7, seed=3))[-1][-1]), abs=1e-5)


def test_a_sampler_says_how_many_samples_are_scored_and_settings_hold_for_them(model, monkeypatch):
    seen = []
    monkeypatch.setattr(Numbers, "metrics", lambda self, s: seen.append((len(s), self.config.offset)) or {})
    model.evaluate()
    monkeypatch.setattr(ToySampler, "evaluated", property(lambda self: 5), raising=False)
    model.evaluate()
    model.evaluate(overrides={"task": {"offset": 7.0}, "sampler": {"block_size": 1}})
    assert seen == [(3, 0.5), (5, 0.5), (5, 7.0)]


def test_sampling_changes_no_global_generator_and_no_thread_count(model):
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    list(model.sample(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_condition_is_checked_by_the_samplers_model(model):
    twice = torch.cat(list(model.sample(4, condition={"scale": 2.0}))) - 0.5
    once = torch.cat(list(model.sample(4))) - 0.5
    assert torch.allclose(twice, 2 * once)
    with pytest.raises(ConfigError, match=r"condition\.scal is no setting; did you mean 'scale'"):
        list(model.sample(4, condition={"scal": 2.0}))
    with pytest.raises(ConfigError, match=r"condition\.scale = 'big'"):
        list(model.sample(4, condition={"scale": "big"}))


def test_the_samplers_config_can_be_overridden(model):
    assert [len(b) for b in model.sample(4, overrides={"sampler": {"block_size": 2}})] == [2, 2]
    with pytest.raises(ConfigError, match=r"sampler\.blok_size is no setting; did you mean 'block_size'"):
        model.sampler(overrides={"sampler": {"blok_size": 2}})
    moved = torch.cat(list(model.sample(2, overrides={"task": {"offset": 0.25}})))
    assert torch.isfinite(moved).all()


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_sample_is_a_usage_error(model, tmp_path, n):
    with pytest.raises(UsageError, match=f"cannot make {n} samples; ask for at least 1"):
        list(model.sample(n))
    with pytest.raises(UsageError, match="at least 1"):
        model.sample_to(tmp_path / "a.jsonl", n)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sampler_or_operation_says_what_is_near(model, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'plain'"):
        list(model.sample(1, sampler="plane"))
    with pytest.raises(UsageError, match="did you mean 'double'"):
        model.apply("doubel", tmp_path, tmp_path / "a")


# On disk


def test_a_folder_holds_one_file_a_sample_numbered_through(model, tmp_path):
    folder = model.sample_to(tmp_path / "samples", 7)
    assert [p.name for p in sorted(folder.iterdir())] == [f"{i:05d}.txt" for i in range(7)]
    assert torch.allclose(model.task.read(folder), torch.cat(list(model.sample(7))), atol=1e-6)


def test_an_unknown_suffix_says_which_can_be_written(model, tmp_path):
    with pytest.raises(UsageError, match=r"cannot write 'a\.cif': Numbers writes \.jsonl, a directory"):
        model.sample_to(tmp_path / "a.cif", 1)


def test_existing_samples_are_not_overwritten_without_force(model, tmp_path):
    path = model.sample_to(tmp_path / "a.jsonl", 2)
    with pytest.raises(RunError, match=r"a\.jsonl exists; choose another -o or pass --force"):
        model.sample_to(path, 3)
    assert len(numbers(path)) == 2
    assert len(numbers(model.sample_to(path, 3, force=True))) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_workers_do_not_change_the_file(model, tmp_path):
    one = model.sample_to(tmp_path / "one.jsonl", 8)
    two = model.sample_to(tmp_path / "two.jsonl", 8, workers=2)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


@pytest.mark.parametrize("workers", [0, -2])
def test_less_than_one_worker_is_a_usage_error(model, tmp_path, workers):
    with pytest.raises(UsageError, match="at least one process"):
        model.sample_to(tmp_path / "a.jsonl", 8, workers=workers)


def test_workers_do_not_run_the_calling_script_again(run, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, headwater\nprint('once')\n"
        f"headwater.load({str(run)!r}).sample_to({str(tmp_path / 'a.jsonl')!r}, 7, workers=2)\n"
    )
    done = command(code=f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr
    assert len(numbers(tmp_path / "a.jsonl")) == 7


# Interruption


def test_a_stopped_job_goes_on_at_the_first_missing_block(model, tmp_path, monkeypatch):
    straight = model.sample_to(tmp_path / "straight.jsonl", 10)
    write = Numbers.write

    def full(self, samples, path, start=0):
        if start == 6:
            path.write_text("half")
            raise OSError(28, "No space left on device")
        write(self, samples, path, start)

    monkeypatch.setattr(Numbers, "write", full)
    with pytest.raises(RunError, match=r"No space left on device; the blocks before are whole.*same command"):
        model.sample_to(tmp_path / "a.jsonl", 10)
    assert sorted(p.name for p in (tmp_path / "a.jsonl.parts").iterdir()) == [
        ".lock",
        "block-0000000.jsonl",
        "block-0000001.jsonl",
        "job.json",
    ]
    monkeypatch.setattr(Numbers, "write", write)
    computed = count_blocks(monkeypatch)
    path = model.sample_to(tmp_path / "a.jsonl", 10)
    assert computed == [2, 3]
    assert path.read_bytes() == straight.read_bytes()
    assert not (tmp_path / "a.jsonl.parts").exists()


def test_a_job_that_could_not_be_joined_goes_on_without_computing_anything(model, tmp_path, monkeypatch):
    def full(self, parts, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    join = Numbers.join
    monkeypatch.setattr(Numbers, "join", full)
    with pytest.raises(RunError, match=r"cannot write .*a\.jsonl: No space left.*a\.jsonl\.parts are whole"):
        model.sample_to(tmp_path / "a.jsonl", 5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.parts"]
    monkeypatch.setattr(Numbers, "join", join)
    computed = count_blocks(monkeypatch)
    assert len(numbers(model.sample_to(tmp_path / "a.jsonl", 5))) == 5
    assert computed == []


def test_files_that_belong_to_the_output_go_with_it(model, tmp_path, monkeypatch):
    def beside(self, path):
        return (path.with_name(path.name + ".note"),)

    def join(self, parts, path, plain=Numbers.join):
        beside(self, path)[0].write_text(f"{len(parts)} parts")
        plain(self, parts, path)

    monkeypatch.setattr(Numbers, "companions", beside)
    monkeypatch.setattr(Numbers, "join", join)
    model.sample_to(tmp_path / "a.jsonl", 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.note"]
    assert (tmp_path / "a.jsonl.note").read_text().endswith("parts")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(RunError, match=r"a\.jsonl\.note exists"):
        model.sample_to(tmp_path / "a.jsonl", 5)
    model.sample_to(tmp_path / "a.jsonl", 5, force=True)

    def full(self, parts, path):
        join(self, parts, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Numbers, "join", full)
    with pytest.raises(RunError, match="No space left"):
        model.sample_to(tmp_path / "b.jsonl", 5)
    assert not list((tmp_path / "b.jsonl.parts").glob("*note"))  # half-written files take no room


def test_samples_read_back_for_metrics_may_stay_in_their_file(model, monkeypatch):
    class Lazy:
        def __init__(self, path):
            self.path = path

        def mean(self):
            return torch.tensor([float(v) for v in numbers(self.path)]).mean()

    block = ToySampler.block
    monkeypatch.setattr(ToySampler, "block", lambda self, *a: tuple(block(self, *a)))
    monkeypatch.setattr(Numbers, "read", lambda self, path: Lazy(path))
    assert model.evaluate(5)["mean"] == model.evaluate(5)["mean"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"n": 9}, {"condition": {"scale": 3.0}}])
def test_the_parts_of_another_job_are_refused(model, tmp_path, monkeypatch, other):
    stop_at_second_block(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        model.sample_to(tmp_path / "a.jsonl", 6)
    monkeypatch.undo()
    n = other.pop("n", 6)
    with pytest.raises(RunError, match=r"a\.jsonl\.parts holds the parts of another job; remove it or pass"):
        model.sample_to(tmp_path / "a.jsonl", n, **other)
    expected = model.sample_to(tmp_path / "b.jsonl", n, **other)
    assert model.sample_to(tmp_path / "a.jsonl", n, force=True, **other).read_bytes() == expected.read_bytes()


def stop_at_second_block(monkeypatch):
    block = ToySampler.block

    def stop(self, k, generator, condition):
        if k == 1:
            raise KeyboardInterrupt
        return block(self, k, generator, condition)

    monkeypatch.setattr(ToySampler, "block", stop)


def test_the_parts_of_a_job_whose_note_is_damaged_are_refused(model, tmp_path, monkeypatch):
    stop_at_second_block(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        model.sample_to(tmp_path / "a.jsonl", 6)
    monkeypatch.undo()
    (tmp_path / "a.jsonl.parts" / "job.json").write_text("{")
    with pytest.raises(RunError, match="another job"):
        model.sample_to(tmp_path / "a.jsonl", 6)


def test_a_run_trained_further_does_not_go_on_with_the_parts_of_before(run, tmp_path, monkeypatch):
    grown = tmp_path / "run"
    shutil.copytree(run, grown)
    stop_at_second_block(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        headwater.load(grown).sample_to(tmp_path / "a.jsonl", 6)
    monkeypatch.undo()
    headwater.resume(grown, max_steps=5)
    with pytest.raises(RunError, match="another job"):
        headwater.load(grown).sample_to(tmp_path / "a.jsonl", 6)


def test_a_worker_that_dies_costs_its_block_and_no_other(run, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    # A hook of an installed plugin runs in the workers; this one kills them at block 2.
    (site / "deadly.py").write_text(
        "import os\nfrom headwater import hookimpl\nAPI = 1\n\n\n@hookimpl\n"
        "def headwater_sample_block(k):\n    if k == 2 and 'DEADLY' in os.environ:\n        os._exit(9)\n"
    )
    info = site / "deadly-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: deadly\nVersion: 1.0\n\n")
    (info / "entry_points.txt").write_text("[headwater]\ndeadly = deadly\n")
    words = ("sample", run, "-n", 7, "-o", tmp_path / "a.jsonl", "--workers", 2)
    done = command(*words, path=site, DEADLY="1")
    assert done.returncode == 1
    assert "error: a worker process ended" in done.stderr
    assert "Traceback" not in done.stderr
    assert command(*words, path=site).returncode == 0
    assert len(numbers(tmp_path / "a.jsonl")) == 7


# Hooks


class Notes:
    def __init__(self):
        self.calls = []

    @headwater.hookimpl
    def headwater_sample_start(self, job):
        self.calls.append(("start", job.what, job.items, job.seed))

    @headwater.hookimpl
    def headwater_sample_block(self, k, samples):
        self.calls.append(("block", k, len(samples)))

    @headwater.hookimpl
    def headwater_sample_end(self, path):
        self.calls.append(("end", path))


def test_sample_hooks_see_start_blocks_and_end(model, tmp_path, hook):
    notes = hook(Notes())
    path = model.sample_to(tmp_path / "a.jsonl", 4, seed=2)
    assert notes.calls == [
        ("start", "sampler:plain", 4, 2), ("block", 0, 3), ("block", 1, 1), ("end", path),
    ]  # fmt: skip
    notes.calls.clear()
    list(model.sample(3))
    assert notes.calls[-1] == ("end", None)


def test_a_block_hook_may_filter_or_annotate(model, tmp_path, hook):
    class Half:
        @headwater.hookimpl
        def headwater_sample_block(self, samples):
            return samples[::2]

    full = numbers(model.sample_to(tmp_path / "a.jsonl", 6))
    hook(Half())
    assert numbers(model.sample_to(tmp_path / "b.jsonl", 6)) == [full[0], full[2], full[3], full[5]]


def test_a_block_hook_that_raises_stops_the_job(model, tmp_path, hook):
    class Broken:
        @headwater.hookimpl
        def headwater_sample_block(self, k):
            if k == 1:
                raise ValueError("a broken filter")

    hook(Broken())
    with pytest.raises(HeadwaterError, match=r"headwater_sample_block of the plugin hooks failed.*a broken"):
        model.sample_to(tmp_path / "a.jsonl", 6)
    assert not (tmp_path / "a.jsonl").exists()


class BrokenStart(Notes):
    @headwater.hookimpl
    def headwater_sample_start(self, job):
        raise ValueError("a broken logger")


def test_a_start_hook_that_raises_is_reported_once_and_its_plugin_switched_off(model, tmp_path, hook, capsys):
    broken = hook(BrokenStart())
    assert len(numbers(model.sample_to(tmp_path / "a.jsonl", 6))) == 6
    assert broken.calls == []
    assert capsys.readouterr().err.count("headwater_sample_start of the plugin hooks failed") == 1


def test_a_start_hook_that_raises_is_an_error_under_strict(model, tmp_path, hook, monkeypatch):
    hook(BrokenStart())
    monkeypatch.setenv("HEADWATER_STRICT", "1")
    with pytest.raises(HeadwaterError, match="a broken logger"):
        model.sample_to(tmp_path / "a.jsonl", 6)


def test_workers_are_refused_where_they_would_lack_a_hook_of_the_script(model, tmp_path, hook):
    hook(Notes())
    with pytest.raises(UsageError, match=r"worker processes do not know plugin 'hooks' \(this script\)"):
        model.sample_to(tmp_path / "a.jsonl", 7, workers=2)


# Operations


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{i}\n" for i in range(7)))
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_an_operation_gives_one_output_an_item_in_order(model, items, tmp_path, workers):
    path = model.apply("double", items, tmp_path / "out.jsonl", workers=workers)
    assert numbers(path) == [0, 2, 4, 6, 8, 10, 12]


def test_a_stopped_operation_goes_on(model, items, tmp_path, monkeypatch):
    apply, seen = Double.apply, []

    def stop(self, chunk, generator):
        seen.append(chunk.tolist())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return apply(self, chunk, generator)

    monkeypatch.setattr(Double, "apply", stop)
    with pytest.raises(KeyboardInterrupt):
        model.apply("double", items, tmp_path / "out.jsonl")
    assert numbers(model.apply("double", items, tmp_path / "out.jsonl")) == [0, 2, 4, 6, 8, 10, 12]
    assert seen == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]


def test_input_that_changed_meanwhile_is_another_job(model, items, tmp_path, monkeypatch):
    apply = Double.apply
    monkeypatch.setattr(Double, "apply", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.apply("double", items, tmp_path / "out.jsonl")
    monkeypatch.setattr(Double, "apply", apply)
    items.write_text("".join(f"{i + 1}\n" for i in range(7)))
    with pytest.raises(RunError, match="another job"):
        model.apply("double", items, tmp_path / "out.jsonl")


def test_input_that_is_missing_empty_or_strange_is_a_data_error(model, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        model.apply("double", tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds nothing to work on \(\.jsonl\)"):
        model.apply("double", empty, tmp_path / "out.jsonl")
    (tmp_path / "words.jsonl").write_text("some words\n")
    with pytest.raises(DataError, match=r"words\.jsonl holds no numbers"):
        model.apply("double", tmp_path / "words.jsonl", tmp_path / "out.jsonl")


def test_an_operation_takes_no_unknown_setting(model, items, tmp_path):
    with pytest.raises(ConfigError, match=r"operation\.block is no setting; did you mean 'block_size'"):
        model.apply("double", items, tmp_path / "out.jsonl", overrides={"operation": {"block": 3}})


def test_a_part_that_was_being_written_when_the_power_failed_does_not_count(model, tmp_path, monkeypatch):
    stop_at_second_block(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        model.sample_to(tmp_path / "a.jsonl", 6)
    monkeypatch.undo()
    (tmp_path / "a.jsonl.parts" / f".{os.getpid()}-block-0000001.jsonl").write_text("half")
    expected = model.sample_to(tmp_path / "b.jsonl", 6)
    assert model.sample_to(tmp_path / "a.jsonl", 6).read_bytes() == expected.read_bytes()


def test_cpu_samples_do_not_depend_on_the_number_of_threads(model):
    with sampling.one_thread(model.place):
        assert torch.get_num_threads() == 1


# What a sampler says of its job


class Measuring(ToySampler):
    unit = "numbers"
    need = 0
    seeds: list = []  # noqa: RUF012 - what the blocks of one test saw

    def amount(self, k):
        return 10 * (k + 1)

    def room(self, missing, blocks, suffix):
        return self.need * len(missing)

    def block(self, k, generator, condition):
        self.seeds.append(self.seed)
        return super().block(k, generator, condition)


@pytest.fixture
def measuring(model, monkeypatch):
    made = model.sampler()
    monkeypatch.setattr(made, "__class__", Measuring)
    monkeypatch.setattr(Measuring, "seeds", [])
    found = model._sampler(None, None)
    monkeypatch.setattr(model, "_sampler", lambda *a: (made, *found[1:]))
    return made


def test_the_progress_bar_counts_what_the_sampler_makes(model, measuring, tmp_path, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, total, done, *, label, unit):
            seen.append((total, done, unit))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def advance(self, done):
            seen.append(done)

    monkeypatch.setattr(sampling, "Progress", Bar)
    n = 3 * measuring.block_size
    model.sample_to(tmp_path / "a.jsonl", n)
    assert seen == [(60, 0, "numbers"), 10, 30, 60]


def test_a_job_is_not_begun_without_room_for_it(model, measuring, tmp_path, monkeypatch):
    monkeypatch.setattr(Measuring, "need", 10**15)
    with pytest.raises(RunError, match=r"takes up to .* GB more while it is made, and .* GB are free"):
        model.sample_to(tmp_path / "a.jsonl", measuring.block_size)
    assert measuring.seeds == []
    assert not (tmp_path / "a.jsonl").exists()


def test_blocks_know_the_seed_of_their_job(model, measuring, tmp_path):
    model.sample_to(tmp_path / "a.jsonl", 2 * measuring.block_size, seed=7)
    list(model.sample(measuring.block_size, seed=9))
    assert measuring.seeds == [7, 7, 9]
