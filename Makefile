# Each target makes the environment it needs (env.sh) and is a single command.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: demo test lint format

demo: ## corpus, tokens, training, continuations, table and picture: minutes on a CPU
	bash egs/minipiano/run.sh

test: lint ## formatting, types, and all tests
	. ./env.sh dev && python -m pytest

lint:
	. ./env.sh dev && ruff format --check . && ruff check . && mypy

format:
	. ./env.sh dev && ruff format . && ruff check --fix .
