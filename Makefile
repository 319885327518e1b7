# Set-up and every experiment by name. PYTHON chooses the interpreter (3.11 to 3.13) that makes .venv.
PYTHON ?= python3
RUN := .venv/bin/python

PAPER := table-2 table-3 table-4 table-5 table-6 table-7 table-s2 table-s3 encoder-transfer
PAPER += figure-1a figure-1b figure-1c figure-4 figure-5 figure-6 figure-s1 figure-s2 figure-s3 back-off enrol
PAPER += ablation-margin ablation-positives ablation-normalize ablation-batching ablation-depth ablation-dtype
PAPER += ablation-schedule ablation wild wild-video wild-threshold wild-size wild-noise wild-coverage wild-target wild-encoder wild-head
PAPER += wild-regularization wild-edits report

.PHONY: demo paper $(PAPER) corpus mobilenet-layers options unseen-generators readme test check parity bench lint clean

demo: .venv/ready
	$(RUN) reproduce.py demo

$(PAPER) corpus mobilenet-layers options unseen-generators readme: .venv/ready
	$(RUN) reproduce.py $@

# The paper's tables and figures on the simulated zoo, one after the other: runs are shared.
paper: .venv/ready
	set -e; for entry in $(PAPER); do $(RUN) reproduce.py $$entry; done

test: .venv/ready
	$(RUN) -m pytest

check: demo
	$(RUN) -m pytest -m slow

# Encoders against Transformers, in an environment of its own: PyTorch is large.
parity: .venv-parity/ready
	.venv-parity/bin/python tests/parity.py

# Ratios against what a user would use instead, in an environment that holds that too.
bench: .venv-bench/ready
	.venv-bench/bin/python benchmarks/bench.py

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/ready: requirements.txt tests/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt -c constraints.txt
	touch $@

.venv-parity/ready: requirements.txt constraints.txt tests/requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-parity.txt -c constraints.txt
	touch $@

.venv-bench/ready: requirements.txt constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt -c constraints.txt
	touch $@

clean:
	rm -rf data/zoo features/zoo features/demo runs/zoo runs/demo
