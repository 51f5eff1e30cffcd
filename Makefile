# make help lists the targets. PYTHON=python3.12 make test picks the interpreter that .venv is made from.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest test-newest lint docs format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(VENV)/.demo ## prune, train and compare a small network, from nothing, on this machine
	$(BIN)/panning demo

test: $(VENV)/.dev ## run the default set of tests, a worker for each core
	$(BIN)/python -m pytest -n auto --durations=10

test-oldest: ## run them with every dependency at the lower bound in pyproject.toml, in .venv-oldest
	mkdir -p build
	sed -n 's/^    "\([A-Za-z0-9-]*\).*>=\(.*\)",$$/\1==\2/p' pyproject.toml > build/oldest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/oldest.txt $(MAKE) test VENV=.venv-oldest

test-newest: ## run them with the newest release of everything, in .venv-newest
	rm -f .venv-newest/.dev
	PIP_UPGRADE=1 PIP_UPGRADE_STRATEGY=eager $(MAKE) test VENV=.venv-newest

lint: $(VENV)/.dev ## ruff and mypy; every rule blocks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
# mypy knows nothing of the folder mapping in pyproject.toml, so it reads an installed copy. The whole of build/ goes
# first: setuptools would install modules again that were deleted since.
	rm -rf build
	$(PIP) --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p panning

docs: $(VENV)/.docs ## build the documentation into build/site; every warning is an error
# mkdocs reads copies: pages laid out as they lie here, so that every link holds in both places, and the package with its
# folders where they are installed.
	rm -rf build/pages build/reference build/site
	mkdir -p build/pages build/reference
	cp -r docs README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md build/pages
	cp -r panning build/reference
	cp -r envs agents configs build/reference/panning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, build and the caches; runs/ stays
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last: an interrupted install is done again, a finished one only when pyproject.toml changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.exit(0 if sys.version_info >= (3, 11) else f"panning needs Python 3.11 or newer, $(PYTHON) is {v}. Name a newer one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml
	$(PIP) --editable '.[cli,search,bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.created pyproject.toml
	$(PIP) --editable '.[docs]'
	@touch $@
