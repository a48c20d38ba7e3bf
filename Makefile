# `make demo` and `make test` set everything up in .venv; nothing else needs to be installed.
PYTHON ?= python3
# Another index for torch alone, for example https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
DEMO_CLIPS ?= 24
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: demo test soak docs lint scores policies plans uneven evaluate ablate lmms clean

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

# What keyframes cost in accuracy: 3,200 questions about test clips, frames exact and at keyframes, paired.
policies: $(READY)
	$(PY) -m pipeline.tiny.clips --split test --count 640 --out out/policies --cache out/clips
	for policy in uniform keyframe; do $(PY) -m jobs.qa --config configs/demo-qa.yaml \
	  manifest=out/policies/qa.jsonl output=out/policies/$$policy video.policy=$$policy || exit; done
	$(PY) -m pipeline.tiny.policies out/policies/uniform out/policies/keyframe --json out/policies/comparison.json

# How well a plan knows the run that follows: four runs, and beside the last three a plan by the run before.
plans: $(READY)
	rm -rf out/plans
	$(PY) -m pipeline.tiny.clips --split validation --count $(DEMO_CLIPS) --out out/plans --cache out/clips
	for run in 0 1 2 3; do $(PY) -m jobs.caption --config configs/demo-caption.yaml \
	  manifest=out/plans/caption.jsonl output=out/plans/$$run || exit; done
	for run in 1 2 3; do $(PY) -m jobs.plan --config configs/demo-caption.yaml manifest=out/plans/caption.jsonl \
	  --profile out/plans/$$((run - 1)) --check out/plans/$$run/runs/2* || exit; done

# What spending a budget unevenly brings: 5,000 questions about validation clips at the same mean retention, paired.
uneven: $(READY)
	$(PY) -m pipeline.tiny.clips --split validation --count 1000 --out out/uneven --cache out/clips
	for adaptive in false true; do $(PY) -m jobs.qa --config configs/demo-qa.yaml budget.retention=0.05 \
	  budget.adaptive=$$adaptive manifest=out/uneven/qa.jsonl output=out/uneven/$$adaptive || exit; done
	$(PY) -m pipeline.tiny.policies out/uneven/false out/uneven/true --json out/uneven/comparison.json

define both_jobs
	for task in caption qa; do $(PY) -m jobs.$$task --config configs/demo-$$task.yaml \
	  manifest=out/scores/$$task.jsonl output=out/scores/$(1)/$$task $(2) || exit; done
endef

# The published comparison, on test clips (about an hour on two cores; resumable), and the ablations on validation clips.
EVALUATE := $(PY) -m jobs.evaluate
evaluate: $(READY)
	$(EVALUATE) compare --split test --clips 1000 --captions 200 --workers 2 --out out/evaluate/test \
	  --method hieravid --method uniform --method divprune --method fastvid --method vidcom2 \
	  --method random@200 --method evs@200 --method fastv@200 --method framefusion@200 --method cdpruner@200

ablate: $(READY)
	$(EVALUATE) ablate --clips 200 --captions 50 --workers 2 --out out/evaluate/ablations

# lmms-eval pins an older PyAV than ours and a torchvision that has no CPU build here, and uses neither for what is asked
# of it: so it comes without its dependencies, and the extra `lmms` names those that it does use.
LMMS_EVAL := lmms-eval==0.7.3
LMMS_PY := .venv-lmms/bin/python
LMMS_READY := .venv-lmms/.ready

$(LMMS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lmms
	$(if $(TORCH_INDEX_URL),$(LMMS_PY) -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX_URL) torch)
	$(LMMS_PY) -m pip install -q -c constraints.txt -e '.[dev,lmms]'
	$(LMMS_PY) -m pip install -q --no-deps $(LMMS_EVAL)
	@touch $(LMMS_READY)

lmms: $(LMMS_READY)
	$(LMMS_PY) -m jobs.evaluate lmms --model builtin:tiny --task hieravid_clips --task hieravid_clips_choice \
	  --method hieravid --method uniform --retention 0.3 --retention 0.2 --retention 0.1 --batch-size 8 --out out/lmms
	$(LMMS_PY) -m pytest tests/evaluate/test_lmms.py tests/evaluate/test_lmms_run.py

test: lint
	$(PY) -m pytest

# Every fault at every moment, every hostile file, large sizes: what takes too long for each change. Started again on the
# same commit it goes on with what has not passed.
soak: $(READY)
	$(PY) -m pytest -m soak --soak-record tests/soak.json

# What is generated from the code; a test fails where it is not current.
docs: $(READY)
	$(PY) -m pipeline.config_reference > configs/README.md

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

clean:
	rm -rf .venv .venv-lmms out
