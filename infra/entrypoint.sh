#!/bin/sh
# `docker run IMAGE scan ...` is `psnet scan ...`. The programs that run cluster nodes and flow runs start containers
# with a command of their own (`bash`, `ray start`, `prefect flow-run execute`, `python -m prefect.engine`):
# those run as they are, so that one image serves every role.
set -eu
case "${1:-}" in
    bash | sh | /bin/bash | /bin/sh | python | ray | prefect | psnet) exec "$@" ;;
    *) exec psnet "$@" ;;
esac
