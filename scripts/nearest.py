"""`nearest.py WORD VALID...`: the valid word that a mistaken one probably stands for, in words."""

import difflib
import sys

word, *valid = sys.argv[1:]
# TASKS for TASK, SEED for SEEDS: a beginning is nearer than anything else
begins = [name for name in valid if name.startswith(word) or word.startswith(name)]
near = begins or difflib.get_close_matches(word.upper(), valid, 1, 0.4)
print(f"did you mean {near[0]}?" if near else f"valid: {' '.join(sorted(valid))}")
