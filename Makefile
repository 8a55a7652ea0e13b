.PHONY: help simulate test deployment docs clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

simulate: .installed  ## simulate a private federation on MovieLens 100K and write a report
	@echo "==> simulating a federation; a run can be interrupted and resumed"
	@.venv/bin/fedrec simulate

test: .installed  ## lint, format, types and tests: what CI runs
	@scripts/check

deployment: .installed  ## hold docs/deploy.md on loopback with real servers, and kill them: some minutes
	@.venv/bin/python -m pytest -q -m deployment tests/integration

docs: .installed  ## write docs/configuration.md and simulation/flower from the schema
	@.venv/bin/fedrec config keys --markdown > docs/configuration.md
	@.venv/bin/fedrec config flower --set server.nodes=2 > simulation/flower/pyproject.toml

clean:  ## remove the virtual environment and what tools left behind
	rm -rf .venv build fedrec.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: .installed
.installed:
	@PYTHON="$(PYTHON)" scripts/install
