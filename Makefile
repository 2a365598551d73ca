# Everything runs in .venv, which make sets up itself. PY=python3 uses that interpreter's environment instead.

CRAWL     ?= CC-MAIN-2025-26
DATA      ?= ../data/$(CRAWL)
TOKENS    ?= $(patsubst %/,%,$(patsubst %/*.parquet,%,$(patsubst %/*.jsonl,%,$(patsubst %/*.jsonl.zst,%,$(DATA)))))-tokens
TOKENIZER ?=
FILES     ?= :
CHUNK_LENGTH ?= 2048
VOCAB_SIZE ?=
LENGTH    ?= $(CHUNK_LENGTH)
METHOD    ?= best-fit
CHUNK     ?=
STEP      ?=
DOC       ?=
RECIPE    ?= tiny
RUN       ?= ../runs/$(basename $(notdir $(RECIPE)))
NPROC     ?=
ARGS      ?=
PROMPT    ?= The
FROM      ?=
HEADS     ?=
IMPORT    ?=
OUT       ?= $(RUN)-hf
DEMO      ?= ../argonne-demo
GPUS      ?= 4
CHAOS     ?= ..
KILLS     ?= 50
JOBS      ?= 2

ifdef PY
PYTHON := $(PY)
READY  :=
else
PYTHON := .venv/bin/python
READY  := .venv/ready
endif

TRAIN = $(PYTHON) -m train run "$(TOKENS)" "$(RUN)" --recipe "$(RECIPE)" $(if $(NPROC),--nproc $(NPROC))

.DEFAULT_GOAL := help
.PHONY: help setup demo download tokenize pack inspect verify train-pipeline train-fsdp resume export doctor plan sample trace report test lint check chaos bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv with the pinned dependencies

.venv/ready: pyproject.toml .constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[fast,plot,ray,test]'
	touch $@

demo: $(READY) ## everything once on two cores: corpus, tokenizer, dataset, two trainings of one run, text (DEMO=dir)
	$(PYTHON) -m preprocess sample-corpus $(DEMO)/corpus --megabytes 12
	@$(MAKE) --no-print-directory tokenize DATA=$(DEMO)/corpus VOCAB_SIZE=8192 CHUNK_LENGTH=256 TOKENS=$(DEMO)/tokens
	@$(MAKE) --no-print-directory inspect TOKENS=$(DEMO)/tokens
	@$(MAKE) --no-print-directory train-pipeline TOKENS=$(DEMO)/tokens RUN=$(DEMO)/run NPROC=2 ARGS='--training.total-steps 60 --stop-step 30'
	@$(MAKE) --no-print-directory train-fsdp TOKENS=$(DEMO)/tokens RUN=$(DEMO)/run NPROC=2 ARGS='--training.total-steps 60'
	@$(MAKE) --no-print-directory sample RUN=$(DEMO)/run PROMPT='def '
	@$(MAKE) --no-print-directory report RUN=$(DEMO)/run

download: $(READY) ## FineWeb's files, checked, resumable (CRAWL=name FILES=0:4 DATA=dir ARGS='--revision commit')
	$(PYTHON) -m preprocess download "$(DATA)" --crawl "$(CRAWL)" --files "$(FILES)" $(ARGS)

tokenize: $(READY) ## text -> token dataset (DATA=dir TOKENS=dir TOKENIZER=file CHUNK_LENGTH=n VOCAB_SIZE=n ARGS=...)
	$(PYTHON) -m preprocess tokenize "$(DATA)" "$(TOKENS)" --chunk-length $(CHUNK_LENGTH) \
		$(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") $(if $(VOCAB_SIZE),--vocab-size $(VOCAB_SIZE)) $(ARGS)

pack: $(READY) ## chunks that respect documents, beside the plain stream (TOKENS=dir LENGTH=n METHOD=best-fit|whole)
	$(PYTHON) -m preprocess pack "$(TOKENS)" --length $(LENGTH) --method $(METHOD) $(ARGS)

inspect: $(READY) ## what a dataset holds, or one chunk of it (TOKENS=dir CHUNK=n ARGS='--html page.html')
	$(PYTHON) -m preprocess inspect "$(TOKENS)" $(if $(CHUNK),--chunk $(CHUNK)) $(ARGS)

verify: $(READY) ## read a dataset against its checksums (TOKENS=dir)
	$(PYTHON) -m preprocess verify "$(TOKENS)" $(ARGS)

train-pipeline: $(READY) ## train or continue a run as a pipeline (TOKENS=dir RECIPE=name RUN=dir NPROC=n ARGS='--a.b value')
	$(TRAIN) --strategy pipeline $(ARGS)

train-fsdp: $(READY) ## train or continue a run fully sharded (TOKENS=dir RECIPE=name RUN=dir NPROC=n ARGS='--a.b value')
	$(TRAIN) --strategy fsdp $(ARGS)

resume: $(READY) ## go on with an old Argonne checkpoint or a Llama folder (FROM=path HEADS=n IMPORT=... TOKENS=dir RECIPE=name RUN=dir)
	test -e "$(RUN)" || $(PYTHON) -m train import "$(FROM)" "$(RUN)" --recipe "$(RECIPE)" \
		$(if $(HEADS),--heads $(HEADS)) $(IMPORT)
	$(PYTHON) -m train run "$(TOKENS)" "$(RUN)" --recipe "$(RUN)/recipe.toml" $(if $(NPROC),--nproc $(NPROC)) $(ARGS)

export: $(READY) ## a run's newest checkpoint as a Hugging Face folder (RUN=dir OUT=dir ARGS='--dtype bf16')
	$(PYTHON) -m train export "$(RUN)" "$(OUT)" $(ARGS)

doctor: $(READY) ## is all here that a run needs? ten seconds (TOKENS=dir RECIPE=name RUN=dir NPROC=n ARGS=--json)
	@$(PYTHON) -m train doctor $(if $(filter-out file,$(origin TOKENS) )$(wildcard $(TOKENS)),--tokens "$(TOKENS)") \
		--run "$(RUN)" --recipe "$(RECIPE)" $(if $(NPROC),--nproc $(NPROC)) $(ARGS)

plan: $(READY) ## will it fit, and how long will it take? no GPU needed (RECIPE=name GPUS=n ARGS='--walltime 8:00 --a.b value')
	@$(PYTHON) -m train plan "$(RECIPE)" --gpus $(GPUS) $(ARGS)

sample: $(READY) ## continue a text with a run's newest checkpoint (RUN=dir PROMPT=text ARGS=...)
	$(PYTHON) -m train sample "$(RUN)" --prompt "$(PROMPT)" $(ARGS)

trace: $(READY) ## the documents of a step, or the steps of a document (RUN=dir STEP=n|a..b DOC=url|id|text ARGS=--text)
	@$(PYTHON) -m train trace --run "$(RUN)" $(if $(STEP),--step $(STEP)) $(if $(DOC),--doc "$(DOC)") $(ARGS)

report: $(READY) ## what a run did, alive or dead: a few lines, and RUN/report.html (RUN=dir ARGS=--json)
	$(PYTHON) -m train report "$(RUN)" $(ARGS)

test: $(READY) ## all tests, JOBS files at once (ARGS=... goes to pytest)
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## formatter, linter and strict type checker
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

check: lint ## lint, and the tests that take seconds
	$(PYTHON) -m pytest -m "not slow and not long" $(ARGS)

chaos: $(READY) ## kills, torn files, flipped bits against a throw-away build and run (KILLS=50 CHAOS=dir ARGS='--only bits')
	$(PYTHON) -m tests.chaos --data-dir "$(CHAOS)" --kills $(KILLS) $(ARGS)

bench: $(READY) ## measure tokenizing, reading and training on this machine
	$(PYTHON) -m tests.benchmarks

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
