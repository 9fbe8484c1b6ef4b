"""AutoLoRA: learn LoRA ranks by a bilevel search, then retrain with them.

What to expect. `--scale cpu`: MiniLM with two adapted blocks on ten-way docstring classification (chance 10 %), about
25 s for a search and 10 s for a retraining on one core. `--scale gpu`: MiniLM on GLUE and NCBI-disease. `--scale paper`:
RoBERTa-base on GLUE and BioNLP 2004, GPT-2 medium on E2E. Commands and expected hours: README.md, `make help`.

    python -m autolora.train --tiny                                       a minute at most, nothing to download
    python -m autolora.train --scale cpu --arm autolora --seed 0          the search first, if it is missing
"""

from __future__ import annotations

from pathlib import Path

from autolora import retrain, search
from autolora.config import Config
from shared import runs

# write the trained adapter in peft's format


def run(config: Config) -> Path:
    kinds = {
        "search": search.search,
        "retrain": retrain.retrain,
        "grid": retrain.keep_best,
        "planted": search.plant,
    }
    if config.kind not in kinds:
        raise runs.BadInput(f"kind = '{config.kind}' must be one of {', '.join(kinds)}")
    with runs.start(config, __file__) as run:
        if not run.finished:
            kinds[config.kind](config, run)
    return run.directory


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
