# `make check` is what continuous integration does; the other targets are its parts, quicker, in
# the environment that is active.
.PHONY: check lint types test check-lowest

check:
	.ci/run

lint:
	ruff check .
	ruff format --check .

types:
	pyright --pythonpath "$$(command -v python)"

test:
	python -m pytest -n 2

# The tests with every dependency of the core at the lower bound that pyproject.toml promises.
check-lowest:
	rm -rf .venv-lowest && python3 -m venv .venv-lowest
	python3 -c "import tomllib; \
	  lines = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
	  print('\n'.join(line.replace('>=', '==') for line in lines))" > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/lowest.txt --editable '.[test]'
	JAX_PLATFORMS=cpu .venv-lowest/bin/python -m pytest -n 2
