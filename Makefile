# Seven papers, one command each. `make` alone prints this help.
# A paper is a directory with a paper.yaml; `python -m benchmarks.new_paper NAME` makes another one.
PAPERS := $(patsubst %/paper.yaml,%,$(wildcard */paper.yaml))

# The interpreter: PYTHON if given, else the first of these that is at least 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ENV    ?= venv
RUN    := $(if $(filter none,$(ENV)),$(PYTHON),.venv/bin/python)

# Everything a user may set goes to the judge as an option.
FLAGS = $(if $(SCALE),--scale $(SCALE)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS)) \
	$(if $(ONLY),--only $(ONLY)) $(if $(ARMS),--arms $(ARMS)) $(if $(LIMIT),--limit $(LIMIT)) \
	$(if $(DRY),--dry) $(if $(STRICT),--strict) $(if $(EXECUTOR),--executor $(EXECUTOR)) $(if $(TIME),--time $(TIME)) \
	$(if $(GPUS),--gpus $(GPUS)) $(if $(PARTITION),--partition $(PARTITION)) $(if $(ACCOUNT),--account $(ACCOUNT))

.PHONY: help setup test test-slow test-gpu lint check audit reproduce rehearsal report bench cluster-check clean
.DEFAULT_GOAL := help

help:  ## print this help
	@echo "Reproductions of seven papers. The two commands to begin with:"
	@echo "  make reproduce-autolora    train, judge and report one paper (about 10 minutes without a GPU)"
	@echo "  make test                  every test of the repository"
	@echo; echo "Targets:"
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1\t\2/' | expand -t 24
	@echo; echo "Papers: $(PAPERS)"
	@echo "Settings: SCALE=cpu|gpu|paper|rehearsal SEEDS=n JOBS=n ONLY=arm ARMS=core|all LIMIT=9m DRY=1 STRICT=1 ENV=none PYTHON=..."
	@echo "On a cluster: EXECUTOR=slurm TIME=4h GPUS=1 PARTITION=... ACCOUNT=..."

setup:  ## make .venv from requirements.txt (again if that file changed); nothing with ENV=none
	@ENV=$(ENV) PYTHON="$(PYTHON)" sh scripts/setup.sh

# One process per core where pytest-xdist is installed (it is pinned); ENV=none may lack it.
SPREAD = $(shell $(RUN) -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --dist worksteal')

test: setup  ## unit, command line and reliability tests (under 12 minutes)
	@$(RUN) -m pytest $(SPREAD) --durations=15

test-slow: setup  ## mutations, 20 kills, bit flips, calibration, full disk
	@$(RUN) -m pytest -m slow

test-gpu: setup  ## tests that need a CUDA device
	@$(RUN) -m pytest -m gpu

lint: setup  ## ruff and mypy
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

check: setup  ## derive every recorded number again from committed predictions (RERUN=1: train one run of each paper again)
	@$(RUN) -m benchmarks.check $(if $(RERUN),--rerun)

audit: setup  ## do the published numbers agree with each other? needs no run
	@$(RUN) -m benchmarks.audit

audit-%: setup  ## the same for one paper
	@$(RUN) -m benchmarks.audit $*

reproduce: setup  ## all papers, at the scale this machine allows
	@$(RUN) -m benchmarks.reproduce $(FLAGS)

reproduce-%: setup  ## one paper: train what is missing, judge its claims, write the report
	@$(RUN) -m benchmarks.reproduce $(subst -,_,$*) $(FLAGS)

rehearsal: setup  ## the papers' full protocols on tiny random models, a few steps each
	@$(RUN) -m benchmarks.reproduce --scale rehearsal $(if $(JOBS),--jobs $(JOBS))

record-%: setup  ## (maintainers) keep the result of reproduce-X in X/results and write the README tables
	@$(RUN) -m benchmarks.reproduce $(subst -,_,$*) --record $(if $(SCALE),--scale $(SCALE))

report: setup  ## the HTML report of what has been run or recorded
	@$(RUN) -m benchmarks.report

bench: setup  ## cost of hypergradients and of each method's training step, beside peers
	@$(RUN) -m benchmarks.hypergradients.run
	@$(RUN) -m benchmarks.methods

cluster-check: setup  ## (root, Debian) start a one-node Slurm, train on it, preempt, compare with a local run
	@$(RUN) scripts/cluster_check.py

clean:  ## delete caches, the report and Python's leftovers; runs/ and results are kept
	@rm -rf report .cache .pytest_cache .mypy_cache .ruff_cache; find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: runs/ (delete it by hand to start over), recorded results, .venv"
