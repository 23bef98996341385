# `make demo` and `make test` set up all they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
PADDLE ?= cpu
# The oldest supported pair, for `make test-oldest`.
OLDEST_PYTHON ?= $(shell for python in python3.9 $$HOME/.pyenv/versions/3.9*/bin/python3 python3; \
	do if $$python -c "" 2>/dev/null; then echo $$python; break; fi; done)
OLDEST_VENV ?= .venv-oldest
OLDEST = paddlepaddle==2.6.2 "numpy<2"

.PHONY: demo test test-slow test-oldest lint format clean

demo: $(VENV)/.installed
	$(VENV)/bin/python tools/demo.py

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m "not slow"

# What takes long or needs root: ViT-H, soak, cut cables, signals to a launcher.
test-slow: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m slow

test-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python -m pytest -m "not slow"

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist *.egg-info

define require_venv
@$(1) -c "import venv, ensurepip" 2>/dev/null || { \
	echo "error: $(1) lacks the venv module: install it (Debian, Ubuntu: apt-get install python3-venv), or make $@ PYTHON=another-python"; \
	exit 1; }
@$(1) -c "import sys; sys.exit(not (3, 9) <= sys.version_info[:2])" || { \
	echo "error: $(1) is older than Python 3.9: make PYTHON=python3.11, say"; exit 1; }
endef

$(VENV)/.installed: setup.py
	$(call require_venv,$(PYTHON))
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(PADDLE),dev]"
	@touch $@

$(OLDEST_VENV)/.installed: setup.py
	$(call require_venv,$(OLDEST_PYTHON))
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet $(OLDEST) --editable ".[dev]"
	@touch $@
