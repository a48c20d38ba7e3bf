# `make demo` and `make test` set everything up in .venv; nothing else needs to be installed.
PYTHON ?= python3
# Another index for torch alone, for example https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
DEMO_CLIPS ?= 24
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: demo test lint clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX_URL),$(PY) -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX_URL) torch)
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	@rm -rf out/demo
	@$(PY) -m pipeline.tiny.clips --split validation --count $(DEMO_CLIPS) --out out/demo --cache out/clips
	@$(PY) -m jobs.caption --config configs/demo-caption.yaml
	@$(PY) -m jobs.qa --config configs/demo-qa.yaml
	@$(PY) -m pipeline.tiny.scores out/demo

test: lint
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

clean:
	rm -rf .venv out
