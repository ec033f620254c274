# make install   into .venv;  EXTRAS=gpu,embedding,audio,vision,demo,bench,dev  on a machine with NVIDIA GPUs.
#                The extras are remembered in .venv/.extras, for all other targets and the next installation
# make serve     install what is missing, then serve CONFIG (Ctrl+C stops it)
# make check     ruff, mypy, import rules
# make test-fast the tests that need neither Ray nor a model, 2 minutes
# make test      those and each worker type of the default configuration in one application, at most 12 minutes
# make test-all  all tests: frontends, faults, two nodes, notebooks, every model; at most 60 minutes
# make format    what ruff can correct
# make bench     all benchmarks, some hours; PEERS names the programs to compare with (benchmarks/README.md)
# make bench-quick  the quick ones, about 8 minutes
# make pin       rewrite requirements/constraints*.txt
# make sbom      the software bills of materials (CycloneDX), from the pins, into dist/
# make audit     looks the pins up in a database of known vulnerabilities; fails where it reaches none
# make clean     remove .venv and the caches

PYTHON ?= python3
DEFAULT_EXTRAS := cpu,embedding,audio,vision,demo,bench,dev
# scripts/install.py writes this file when it begins, with the date of 1970, and renews the date when it has succeeded.
STAMP := .venv/.extras
INSTALLED := $(shell cat $(STAMP) 2>/dev/null)
EXTRAS ?= $(or $(INSTALLED),$(DEFAULT_EXTRAS))
CONFIG ?= serve_config.yaml

BIN := .venv/bin

TOO_OLD := install: $(PYTHON) is older than 3.11. Install Python 3.11 or newer and name it: make install PYTHON=python3.11

.PHONY: install serve test test-all test-fast bench bench-quick check format pin sbom audit clean other-extras

install: $(STAMP)

ifneq ($(EXTRAS),$(INSTALLED))
$(STAMP): other-extras
endif
$(STAMP): pyproject.toml scripts/install.py $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(TOO_OLD)")'
	@$(PYTHON) scripts/install.py --extras '$(EXTRAS)'

serve: $(STAMP)
	@exec $(BIN)/rbee-serve serve $(CONFIG)

test: $(STAMP)
	$(BIN)/pytest -m 'not full'

test-all: $(STAMP)
	$(BIN)/pytest --no-unlisted-skips

test-fast: $(STAMP)
	$(BIN)/pytest -m 'not ray and not vllm and not model and not gpu and not full'

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_import_rules.py

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP)
	$(BIN)/python -m benchmarks all $(PEERS)

bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks all --quick

# The newest versions that fit together, pinned. The CPU build of torch is written without its +cpu, which the other
# build does not have; `==` accepts both.
PIN := $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --no-annotate --no-header --extra embedding --extra audio --extra vision --extra demo --extra bench --extra dev
pin: $(STAMP)
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
	  $(PIN) --extra cpu --override requirements/overrides.txt | sed 's/+cpu$$//' > requirements/constraints.txt
	$(PIN) --extra gpu --override requirements/overrides-gpu.txt > requirements/constraints-gpu.txt

sbom: $(STAMP)
	$(BIN)/python -m scripts.sbom dist

audit: $(STAMP)
	@$(BIN)/python -m scripts.audit

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
