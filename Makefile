# Set-up and every experiment by name. PYTHON chooses the interpreter (3.11 to 3.13) that makes .venv.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo corpus test check lint clean

demo: .venv/ready
	$(RUN) reproduce.py demo

corpus: .venv/ready
	$(RUN) reproduce.py corpus

test: .venv/ready
	$(RUN) -m pytest

check: demo
	$(RUN) -m pytest -m slow

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/ready: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@

clean:
	rm -rf data/zoo features/zoo features/demo runs/zoo runs/demo
