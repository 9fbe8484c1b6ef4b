"""MLO-MAE: masks for a masked autoencoder, learned from what they do to a classifier."""

import shared as shared  # first of all: it names a package that is not installed
