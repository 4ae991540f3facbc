# The deployment: its tools, its tests, and the commands that go with it. Included by the Makefile.
PART_CHECKS += check-infra
PART_TESTS += test-infra
# The tests of the Lambda function let SST's component zip it.
test: .sst/platform/.installed
PNPM_VERSION := 12.21.0
PNPM := .cache/pnpm/node_modules/.bin/pnpm

# pnpm for this checkout only, from npm; the modification date tells make which version it is.
$(PNPM): infra/targets.mk
	@command -v npm >/dev/null || { echo "Node.js 20 or newer with npm is needed; on Debian or Ubuntu: apt-get install nodejs npm" >&2; exit 1; }
	@mkdir -p .cache/pnpm
	@[ "$$($@ --version 2>/dev/null)" = $(PNPM_VERSION) ] || \
	    npm install --prefix .cache/pnpm --no-save --no-audit --no-fund --loglevel=error pnpm@$(PNPM_VERSION) >&2
	@touch $@

# What the lock names, for every TypeScript part of the workspace at once.
node_modules/.installed: pnpm-lock.yaml pnpm-workspace.yaml package.json $(wildcard packages/*/package.json) | $(PNPM)
	@nice $(PNPM) install --frozen-lockfile --loglevel=error >&2
	@touch $@

# SST's components, Pulumi's SDK and AWS's provider types, as SST installs them: what tsc and the graph tests read.
SST_ENV := SST_SKIP_DEPENDENCY_CHECK=1 SST_NO_BUN=1 SST_TELEMETRY_DISABLED=1 DO_NOT_TRACK=1 AWS_EC2_METADATA_DISABLED=true
.sst/platform/.installed: node_modules/.installed sst.config.ts
	@version=$$(node -p "require('./node_modules/sst/package.json').version"); \
	if [ "$$(cat $@ 2>/dev/null)" != "$$version" ]; then \
	    $(SST_ENV) nice node_modules/.bin/sst install --stage prod >&2; echo "$$version" >$@; fi
	@touch $@

# cfn-lint in an environment of its own: nothing of the project depends on it.
.cache/infra/.installed: infra/requirements-test.lock | $(UV)
	@$(PYTHON) -m venv .cache/infra
	@VIRTUAL_ENV=$(CURDIR)/.cache/infra nice $(UV) pip install --quiet --require-hashes --requirement infra/requirements-test.lock
	@touch $@

.PHONY: check-infra
check-infra: .sst/platform/.installed ## Types of the deployment's description and its scripts
	@node_modules/.bin/tsc --project infra/tsconfig.json

.PHONY: test-infra
test-infra: check-infra .cache/infra/.installed ## The deployment's graph against the requirements and AWS's schemas
	nice node --test --test-reporter=dot infra/testing/*.test.mjs
	@nice node infra/testing/evaluate.mjs --example >.cache/infra/graph.json
	cd infra/testing && nice $(CURDIR)/.cache/infra/bin/python -W error test_cloudformation.py <$(CURDIR)/.cache/infra/graph.json

.PHONY: lambda
lambda: $(UV) ## Put the Lambda function's code together in .cache/lambda/bundle
	@$(PYTHON) infra/package.py build .cache/lambda/bundle

.PHONY: bench-lambda
bench-lambda: .venv/.dev .sst/platform/.installed ## Measure the function's cold start and what its imports cost
	@$(BIN)/python infra/testing/cold_start.py

.PHONY: lock-infra
lock-infra: $(UV) ## Resolve what the function and the deployment's tests need; run it after `make lock`
	$(subst 3.11,3.13,$(COMPILE)) --constraint requirements.lock packages/state-tracking-api/pyproject.toml \
	    --extra lambda --extra srv --extra redis infra/requirements.in --output-file infra/requirements.lock
	$(COMPILE) --constraint requirements.lock packages/state-tracking-api/pyproject.toml \
	    --extra serve --extra srv --extra redis --output-file infra/requirements-container.lock
	$(COMPILE) --upgrade infra/requirements-test.in --output-file infra/requirements-test.lock
	$(COMPILE) --upgrade infra/requirements-runtime.in --output-file infra/requirements-runtime.lock
	$(COMPILE) --no-deps infra/requirements-events.in --output-file infra/requirements-events.lock

.PHONY: verify-deployment
verify-deployment: ## Check a deployed address: make verify-deployment URL=https://… [API_KEY=…]
	@$(PYTHON) infra/verify.py $(URL)
