# The VS Code extension: its package, its tests in a real VS Code, its checks. Included by the Makefile.
EXTENSION := packages/vscode-extension
PART_CHECKS += check-extension
PART_TESTS += test-extension
CODE_SERVER := .cache/code-server/.installed
EXTENSION_SOURCES = $(shell find $(EXTENSION)/src $(EXTENSION)/media -type f) $(EXTENSION)/README.md $(EXTENSION)/CHANGELOG.md

.PHONY: extension
extension: $(EXTENSION)/dist/claude-projects.vsix ## Package the VS Code extension

.PHONY: test-extension
test-extension: .venv/.dev node_modules/.installed $(EXTENSION)/dist/claude-projects.vsix $(CODE_SERVER) ## Test the extension, most of it in a real VS Code
	cd $(EXTENSION) && nice node_modules/.bin/vitest run $(VITEST_ARGS)

.PHONY: check-extension
check-extension: .venv/.dev node_modules/.installed ## Types, lint, formatting and generated files of the extension
	cd $(EXTENSION) && node_modules/.bin/tsc && node_modules/.bin/eslint . && node_modules/.bin/prettier --check --log-level warn . && node scripts/generate.mjs --check

.PHONY: generate-extension
generate-extension: .venv/.dev node_modules/.installed ## Bring the extension's generated files up to date
	cd $(EXTENSION) && node scripts/generate.mjs

$(EXTENSION)/dist/claude-projects.vsix: node_modules/.installed $(EXTENSION_SOURCES) $(EXTENSION)/package.json $(EXTENSION)/.vscodeignore $(EXTENSION)/scripts/build.mjs
	@cd $(EXTENSION) && node scripts/build.mjs && nice node_modules/.bin/vsce package --no-dependencies --allow-missing-repository --skip-license --no-rewrite-relative-links --out dist/claude-projects.vsix >dist/vsce.log || { cat dist/vsce.log >&2; exit 1; }
	@ls -l $@

# A real VS Code, and what it and the tests need of the system; only root can install that.
$(CODE_SERVER): $(EXTENSION)/scripts/install-code-server.sh
	@.ci/system-packages chromium rg g++ make python3
	@nice $(EXTENSION)/scripts/install-code-server.sh .cache/code-server
	@touch $@
