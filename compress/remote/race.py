"""Models timed in turns on another machine: the files go there, the script of this installation times them, seconds come back."""

from __future__ import annotations

from collections.abc import Sequence

from compress.measure.interleaved import Candidate, Figures, judged
from compress.remote.ssh import Workshop, readable, record, scripts, spoken
from compress.user import files
from exporters.standalone.machine import State
from exporters.standalone.racing import Measured


def race(
    shop: Workshop, candidates: Sequence[Candidate], *, rounds: int = 40, cpus: Sequence[int] = (), seed: int = 0
) -> list[Figures]:
    """As `measure.turns.race`, on a device and in its ONNX Runtime.

    Raises:
        BadInput: no room for the files, or an answer that cannot be read.
    """
    shop.bring(scripts())
    paths = dict.fromkeys(candidate.path for candidate in candidates)
    for number, path in enumerate(paths, len(shop.brought)):
        beside = path.with_name(f"{path.name}.data")  # weights that one file does not hold
        shop.bring({f"{number}/{one.name}": one for one in (path, beside) if one.is_file()})
    settings = {
        "batch": candidates[0].batch,
        "threads": candidates[0].threads,
        "rounds": rounds,
        "cpus": ",".join(map(str, cpus)),
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    done = shop.run("bench.py", "--json", *options, "--", *(shop.brought[candidate.path] for candidate in candidates))
    with readable(shop.there, done, "bench.py"):
        told = files.parsed_json(spoken(done))
        models = [record(Measured, model) for model in told["models"]]
        if not all(model.failed or (model.rounds and all(model.rounds)) for model in models):
            raise ValueError("a model without a round")
        before, after = (record(State, state) for state in (told["before"], told["after"]))
        return judged(candidates, models, before, after, seed=seed, device=str(told["environment"]["cpu"]))
