#!/usr/bin/env bash
# Runs inside `docker build`: pip installs its arguments into the image's environment and makes the layer the same on
# every build. Byte code is part of it, because nobody may write it later, and must not depend on times; times are the epoch's.
set -euo pipefail
[[ ${!#} != *'*'* ]] || exit 0 # a pattern that matched nothing: a stack without such wheels

start=$(mktemp)
trap 'rm -f "$start" "$start.py"' EXIT
# The build's pip settings come as a secret; a CA of a closed network likewise.
[[ ! -s /run/secrets/ca ]] || export PIP_CERT=/run/secrets/ca
[[ -d $VIRTUAL_ENV ]] || "python$PYTHON" -m venv --without-pip "$VIRTUAL_ENV"
PIP_CONFIG_FILE=/run/secrets/pip "python$PYTHON" -m pip --python="$VIRTUAL_ENV/bin/python" install \
    --no-deps --no-compile --root-user-action=ignore --disable-pip-version-check --no-warn-script-location "$@"
# One process, sorted: what a process compiled before changes the bytes of what it compiles next. -f: what starting Python has
# compiled already (setuptools' hack, by its .pth file) holds a time.
find "$VIRTUAL_ENV" -name '*.py' -newer "$start" | LC_ALL=C sort >"$start.py"
"$VIRTUAL_ENV/bin/python" -m compileall -q -f --invalidation-mode=unchecked-hash -i "$start.py" || true # templates are no Python
find "$VIRTUAL_ENV" -newer "$start" -exec touch --no-dereference --date=@0 {} +
touch --no-dereference --date=@0 "${VIRTUAL_ENV%/*}"
