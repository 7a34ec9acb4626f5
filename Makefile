# Each target is one visible command; `make setup` comes before all of them and does nothing the second time.
PYTHON_BIN := .venv/bin/python
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: setup demo up test faults sdks check sbom audit fmt openapi lock
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z]+: .*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

setup: ## Make the environment, .venv in the checkout
	@deploy/setup-venv.sh

demo: setup      ## Fine-tune the embedded base model on a real data set and compare the two (5 minutes)
	$(PYTHON_BIN) examples/demo.py

up: setup        ## Run the stack in the foreground until Ctrl-C
	.venv/bin/selftune up

sdks: setup      ## Fetch the other SDKs that the tests run: openai 2.x, openai for Node
	@tests/sdk/setup.sh

test: setup sdks ## Run every test, the real ones included
	$(PYTHON_BIN) -m pytest --durations=15

faults: setup    ## Pull 200 plugs on a real stack; SEED=… repeats a run (half an hour)
	$(PYTHON_BIN) -m tests.faults --faults 200 $(if $(SEED),--seed $(SEED))

check: setup     ## Format, lint, types, dependency rules, licences
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(PYTHON_BIN) -m mypy
	.venv/bin/lint-imports
	$(PYTHON_BIN) deploy/licences.py

sbom: setup      ## Write the software bill of materials, build/sbom.json (CycloneDX)
	mkdir -p build
	.venv/bin/cyclonedx-py environment $(PYTHON_BIN) --pyproject pyproject.toml --of JSON -o build/sbom.json

audit: setup     ## Look up known vulnerabilities of what is pinned; needs PyPI, and fails where it does not answer
	.venv/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

fmt: setup       ## Format the code
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

openapi: setup   ## Write openapi.yaml from the code
	$(PYTHON_BIN) -m services.api.openapi > openapi.yaml

lock: setup      ## Renew constraints.txt from the environment
	$(PYTHON_BIN) -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
