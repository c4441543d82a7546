# SPDX-License-Identifier: Apache-2.0
. "$REPOSITORY/tests/docs_setup/deployment.sh"
upseal admin token > agent.token
upseal agent enrol --parent http://127.0.0.1:8450 --token-file agent.token -d agent
head -c 100000 /dev/urandom > crash.core
