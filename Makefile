# Set-up and every experiment by name. PYTHON chooses the interpreter (3.11 to 3.13) that makes .venv.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo corpus mobilenet-layers options unseen-generators test check parity lint clean

demo: .venv/ready
	$(RUN) reproduce.py demo

corpus mobilenet-layers options unseen-generators: .venv/ready
	$(RUN) reproduce.py $@

test: .venv/ready
	$(RUN) -m pytest

check: demo
	$(RUN) -m pytest -m slow

# Encoders against Transformers, in an environment of its own: PyTorch is large.
parity: .venv-parity/ready
	.venv-parity/bin/python tests/parity.py

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/ready: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@

.venv-parity/ready: requirements.txt tests/requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-parity.txt
	touch $@

clean:
	rm -rf data/zoo features/zoo features/demo runs/zoo runs/demo
