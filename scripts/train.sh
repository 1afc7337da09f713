#!/usr/bin/env bash
exec bash "${BASH_SOURCE[0]%/*}/run.sh" train "$@" # see there
