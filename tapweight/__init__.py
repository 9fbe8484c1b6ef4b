"""TapWeight (TMLR 2025): weights of pretraining objectives, learned from the downstream task."""

import shared as shared  # first of all: it names a package that is not installed
