# One command each; every target sets up what it needs first. Repeating a target costs nothing until pyproject.toml changes.
#   make demo    a whole run on small images that come with scikit-learn
#   make test    the default tests (no GPU, no downloads besides packages)
#   make check   ruff, pyright and the tests: what a change has to pass
#   make browser Debian's Chromium, in which report.html is looked at; only where that can be installed
#   make docs    the generated tables and the picture, then the site, into build/site
#   make release the wheel, built and tried in an environment of its own
#   make sbom    the bill of materials of what the checks run with, into build/
# PYTHON=python3.12 picks an interpreter; JOBS=1 runs the tests one by one; pip's own environment variables (PIP_INDEX_URL ...) pick where packages come from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest -n $(JOBS)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test slow check browser lint format docs constraints lock sbom release clean

demo: $(VENV)/.demo
	$(BIN)/compress demo --out demo-out --force
	@command -v compress >/dev/null || echo "The command is $(BIN)/compress; '. $(BIN)/activate' makes it 'compress'."

test: $(VENV)/.test
	$(PYTEST)

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

check: lint
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Tests of report.html in a browser are skipped without it.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || echo "No Chromium: its tests are skipped."

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/front_picture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What the checks run with, for PIP_CONSTRAINT=constraints.txt.
constraints: $(VENV)/.dev
	@{ echo "# The versions that the checks of this project run with (Python 3.11, Linux, x86-64): make constraints writes this file."; \
	  $(BIN)/python -m pip freeze --exclude entropress --exclude pip --exclude setuptools | grep '=='; } > constraints.txt

# The same with the hash of every file, for pip install --require-hashes.
lock: $(VENV)/.created
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile --quiet pyproject.toml --extra demo --extra dev --constraint constraints.txt --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
	  --python-version 3.11.7 --python-platform x86_64-manylinux_2_28 --output-file requirements.lock

# What requirements.lock names, as a bill of materials (CycloneDX).
sbom: $(VENV)/.created
	$(PIP) install --quiet cyclonedx-bom
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.cdx.json

release:
	$(PYTHON) .ci/release.py

clean:
	rm -rf $(VENV) demo-out build *.egg-info

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Found $$($(PYTHON) --version 2>&1), needed is Python 3.11 or newer: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp per set of extras: .demo, .test, .dev
$(VENV)/.%: pyproject.toml $(VENV)/.created
	$(PIP) install --quiet --config-settings editable_mode=compat -e '.[$*]'
	@touch $@
