"""Parts of a quick benchmark in few processes: half of a part's time would be the start of its process."""

import importlib
import json

from marsnn.bench.parts import part


def few_processes(*always):
    """`part`, but only the first call of each part is a process of its own; those of `always` each are."""
    seen = set()

    def call(benchmark, name, environment=None, **arguments):
        if name not in seen or name in always:
            seen.add(name)
            return part(benchmark, name, environment, **arguments)
        run = getattr(importlib.import_module(f"marsnn.bench.{benchmark}"), name)
        return json.loads(json.dumps(run(**json.loads(json.dumps(arguments)))))

    return call
