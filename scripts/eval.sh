#!/usr/bin/env bash
exec bash "${BASH_SOURCE[0]%/*}/run.sh" predict "$@" # see there
