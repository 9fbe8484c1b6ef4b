"""What at least two methods use: hypergradients, loaders, runs. Imports nothing by itself."""
