# make setup once, then make test, lint or parity; make figures prints what README and docs show.
bin := .venv/bin

.PHONY: setup test lint parity figures

setup:
	python3 -m venv .venv
	$(bin)/pip install -q -e ".[cpu,test,parity,dev,cpp]"
	$(bin)/pre-commit install

test:
	$(bin)/python -m pytest -q -n auto

lint:
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	git ls-files native | grep -E '\.(c|h|cpp|hpp)$$' | xargs $(bin)/clang-format --dry-run --Werror
	$(bin)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(bin)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(bin)/pre-commit validate-config

parity:
	$(bin)/python -m pytest -n 2 --dist loadgroup -m "(parity or slow) and not network and not gpu"

figures:  # docs' tables in seconds, README's of speed in twenty minutes
	for table in metal_figures model_sizes performance; do $(bin)/python figures/$$table.py || exit; done
