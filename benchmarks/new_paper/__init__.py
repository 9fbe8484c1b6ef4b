"""`python -m benchmarks.new_paper NAME`: a paper's directory that already trains and is judged."""
