"""Find made plugins, or import their modules by hand; prints one line of JSON. Run by run.py."""

import argparse
import importlib
import json
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=("discover", "import", "call"))
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    from headwater import hookimpl, registry  # noqa: F401 - what both ways need, before the clock starts
    from headwater.entries import TaskEntry  # noqa: F401

    began = time.process_time()
    if options.how == "discover":
        names = [name for name, plugin in registry.plugins().items() if name.startswith("made-")]
        if len(names) != options.count or len(registry.tasks()) < options.count:
            raise SystemExit(f"found {len(names)} plugins and {len(registry.tasks())} tasks")
    else:
        for i in range(options.count):
            module = importlib.import_module(f"made_plugin_{i}")
            if options.how == "call":
                module.headwater_tasks()
    print(json.dumps({"cpu_seconds": time.process_time() - began}))


if __name__ == "__main__":
    main()
