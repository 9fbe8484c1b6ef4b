"""MLO-MAE: masks for a masked autoencoder, learned from what they do to a classifier."""
