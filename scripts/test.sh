#!/usr/bin/env bash
# Sets up whatever is missing, then runs the tests. Arguments go to pytest and win over the defaults here:
# `bash scripts/test.sh tests/test_layers.py -n 0 --pdb` runs one file in one process under the debugger.
set -euo pipefail

root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$root/scripts/setup.sh"
cd "$root"
# Two workers with one thread each: threads that compete for a core can be ten times slower than one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
# worksteal hands out neighbouring tests together, so that most module fixtures are built once.
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
