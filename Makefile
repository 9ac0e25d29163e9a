# make run    boot a guest on this machine and be in it        make test   check everything that is fast
PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help run test test-slow bench bench-cpu bench-io bench-snapshots bench-containers install install-test clean

help:
	@echo "make run        install hostel in .venv, boot Linux on it and be on its console"
	@echo "                (without a terminal: a short tour of the guest)"
	@echo "make test       every fast test, ruff and mypy     make test-slow   the long ones"
	@echo "make bench      measure against QEMU               make bench-cpu   the translator's speed"
	@echo "make bench-io   devices' speed                    make bench-snapshots   snapshots and forks"
	@echo "make bench-containers   containers and their images"
	@echo "make clean      remove what was built"

run: install
	@if [ -t 0 ] && [ -t 1 ]; then exec .venv/bin/hostel run; \
	else exec .venv/bin/hostel run -- /bin/sh -c "$$(cat tools/tour.sh)" < /dev/null; fi

test: install-test
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest

test-slow: install-test
	.venv/bin/pytest -m slow

bench: install-test
	.venv/bin/python -m bench

bench-cpu: install-test
	.venv/bin/python -m bench cpu

bench-io: install-test
	.venv/bin/python -m bench io

bench-snapshots: install-test
	.venv/bin/python -m bench snapshots

bench-containers: install-test
	.venv/bin/python -m bench containers

install:
	@$(PYTHON) tools/install

install-test:
	@$(PYTHON) tools/install --test

clean:
	rm -rf .venv build src/*.egg-info
	find src \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +
	find src -name '*.py' -exec sh -c 'for f; do rm -f "$${f%.py}.c"; done' sh {} +
