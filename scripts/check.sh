#!/usr/bin/env bash
# Sets up the checkout and checks format, lint and types.
source "$(dirname "$0")/setup.sh"
ruff format --check .
ruff check .
mypy
