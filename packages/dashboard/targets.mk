# The dashboard's front end. Its built files are committed inside the server's package, so `make run` needs no
# Node; this builds them anew after a change. Included by the Makefile, after infra/targets.mk.

PART_CHECKS += check-dashboard

.PHONY: dashboard
dashboard: node_modules/.installed ## Build the dashboard's page into the server's package
	@cd packages/dashboard && node_modules/.bin/tsc --noEmit && node_modules/.bin/vite build --logLevel warn && node scripts/stamp.mjs

.PHONY: check-dashboard
check-dashboard: node_modules/.installed ## Types of the dashboard, and whether a build gives the committed files
	@cd packages/dashboard && node_modules/.bin/tsc --noEmit && node scripts/stamp.mjs --check && node scripts/same.mjs
