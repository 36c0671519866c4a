"""Work in processes: order, errors, and items that hang or kill their process."""

import operator
import os
import sys
import time
import types

from headwater_bfn.pool import Failure, Pool


def test_results_come_in_order_and_an_error_spoils_its_item_alone():
    with Pool(2, 30.0) as pool:
        results = pool.each(operator.truediv, [1, 2, 0, 4], 8)
        assert [results[i] for i in (0, 1, 3)] == [8.0, 4.0, 2.0]
        assert results[2] == Failure("ZeroDivisionError: division by zero")
        # The same processes do another job, and None is a result like any other.
        assert (
            pool.each(operator.call, [{}, {"a": 1}], {"a": 5}.get)
            == [Failure("TypeError: unhashable type: 'dict'")] * 2
        )
        assert pool.each(operator.call, ["a", "b"], {"a": 5}.get) == [5, None]
        assert pool.each(operator.add, [], 1) == []


def test_an_item_that_hangs_is_ended_and_the_others_are_done():
    with Pool(1, 1.0) as pool:
        began = time.monotonic()
        results = pool.each(operator.call, [0.01, 60.0, 0.02], time.sleep)
        assert results[0] is None
        assert results[2] is None
        assert results[1] == Failure("took more than 1 s", stuck=True)
        assert time.monotonic() - began < 30


def test_an_item_that_kills_its_process_is_named_and_the_others_are_done():
    with Pool(1, 30.0) as pool:
        results = pool.each(operator.call, [7, 8], os._exit)
        assert results == [Failure(f"its process ended with exit code {code}") for code in (7, 8)]
        assert pool.each(operator.add, [1], 1) == [2]


def test_a_function_that_the_processes_cannot_import_is_said_for_each_item(monkeypatch):
    monkeypatch.setitem(sys.modules, "only_here", module := types.ModuleType("only_here"))
    exec("def work(shared, item): return item", module.__dict__)
    with Pool(1, 30.0) as pool:
        results = pool.each(module.work, [1, 2])
        assert results == [Failure("ModuleNotFoundError: No module named 'only_here'")] * 2
        assert pool.each(operator.add, [1], 1) == [2]
