# Set-up and every experiment by name. PYTHON chooses the interpreter (3.11 to 3.13) that makes .venv.
PYTHON ?= python3
RUN := .venv/bin/python

NAMED := demo steps paper ablation back-off encoder-transfer enrol loss-grid recipe report unseen-generators wild readme
.PHONY: $(NAMED) test fuzz check parity bench lint clean

# Experiments by name; `reproduce.py --list` has them all but `compare`, which takes run folders. `paper` is all tables.
$(NAMED): .venv/ready
	$(RUN) reproduce.py $@

table-%: .venv/ready
	$(RUN) reproduce.py $@

figure-%: .venv/ready
	$(RUN) reproduce.py $@

ablation-%: .venv/ready
	$(RUN) reproduce.py $@

wild-%: .venv/ready
	$(RUN) reproduce.py $@

test: .venv/ready
	$(RUN) -m pytest

# Damaged files of every kind, the same ones each time.
fuzz: .venv/ready
	$(RUN) tests/fuzz.py --seconds 30 --seed 0

# Stage 2 as the paper trains it, as typed, on what the demo left where the stages look.
check: demo steps
	$(RUN) 03_attribute.py --level team
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
	rm -rf data/zoo features/zoo runs/zoo runs/demo data/steps features/steps runs/steps data/large features/large-*
