# Documentation. Included by the Makefile; `docs-check` is fast enough for `make check`.
PART_CHECKS += docs-check

.PHONY: docs-check
docs-check: .venv/.dev ## Check the documentation: links, generated pages, and the site without a warning
	$(BIN)/python docs/reference/check.py
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict
