"""What at least two of the seven methods use: hypergradients, loaders, runs. Importing it imports nothing else."""
