# `make demo` and `make test` set everything up in .venv; nothing else needs to be installed.
PYTHON ?= python3
# Another index for torch alone, for example https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
DEMO_CLIPS ?= 24
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: demo test lint scores clean

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

# The built-in model's scores on 500 validation clips, unpruned and at 0.3; committed in its checkpoint folder.
scores: $(READY)
	$(PY) -m pipeline.tiny.clips --split validation --count 500 --out out/scores --cache out/clips
	$(call both_jobs,full,budget.retention=1.0 pruning.method=none)
	$(PY) -m pipeline.tiny.scores out/scores/full --json out/scores/full.json
	$(call both_jobs,pruned,budget.retention=0.3)
	$(PY) -m pipeline.tiny.scores out/scores/pruned --json out/scores/pruned.json
	$(PY) -m pipeline.tiny.separation --clips 200 --cache out/clips --json out/scores/separation.json

define both_jobs
	for task in caption qa; do $(PY) -m jobs.$$task --config configs/demo-$$task.yaml \
	  manifest=out/scores/$$task.jsonl output=out/scores/$(1)/$$task $(2) || exit; done
endef

test: lint
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

clean:
	rm -rf .venv out
