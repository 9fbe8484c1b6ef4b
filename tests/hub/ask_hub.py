"""Asks a hub for models and data, THREADS at a time, as the papers' loaders do; prints JSON.

Usage: python ask_hub.py ROOT THREADS model/OWNER/NAME data/OWNER/NAME ...
Each answer is {"ok": what came} or {"error": class, "message": text}.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, sys.argv[1])

import datasets
import huggingface_hub  # noqa: F401

from shared import door, sources

datasets.disable_progress_bars()


def ask(word: str) -> dict[str, str]:
    kind, name = word.split("/", 1)
    try:
        if kind == "model":
            folder, how = sources.find_model(name)
            weights = sum(path.stat().st_size for path in door.model_files(door.Path(folder)))
            return {"ok": f"{how}, {weights} bytes"}
        return {"ok": f"{len(sources.load_hub(sources.Hub(name), name, 'train'))} rows"}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


with ThreadPoolExecutor(int(sys.argv[2])) as threads:
    print(json.dumps(list(threads.map(ask, sys.argv[3:]))))
