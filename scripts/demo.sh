#!/usr/bin/env bash
# Sets up whatever is missing, then starts the demo. Arguments go to `mer-hf demo`.
set -euo pipefail

root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$root/scripts/setup.sh"
# No cd: file names among the arguments belong to the directory this was called from.
exec "$root/.venv/bin/mer-hf" demo "$@"
