#!/usr/bin/env bash
# Runs a test of the docker-compose stack: test.sh Single, test.sh Cluster. Where there is no engine or no image, it makes
# them, and keeps their files in .stack.
set -eu
cd "$(dirname "$0")/../.."
DOCKER_HOST=$(scripts/stack/engine.sh start .stack/engine)
export DOCKER_HOST
trap 'scripts/stack/engine.sh stop .stack/engine' EXIT
scripts/stack/standins.sh .stack/images
go test -tags stack -count=1 -timeout 20m -v -run "^TestStack_$1\$" ./internal/stacktest
