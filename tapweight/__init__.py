"""TapWeight (TMLR 2025): weights of pretraining objectives, learned from the downstream task."""
