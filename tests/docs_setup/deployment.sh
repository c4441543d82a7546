# SPDX-License-Identifier: Apache-2.0
# A deployment in ./site whose server runs. Agents and relays ask often, so that nobody waits a minute.
export UPSEAL_DEPLOYMENT=$PWD/site
export UPSEAL_AGENT_SEND__REFRESH=0.5 UPSEAL_AGENT_SEND__RETRY=0.2 UPSEAL_AGENT_BATCH__SECONDS=0.2
export UPSEAL_AGENT_GATHER__INTERVAL=1 UPSEAL_AGENT_GATHER__WHAT=cpu UPSEAL_AGENT_SEND__BEACON=1 UPSEAL_RELAY_REFRESH__MANIFEST=0.5
upseal admin init --name Example
upseal server run 2> server.log &
await() { for _ in $(seq 300); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; return 1; }
await curl -fs http://127.0.0.1:8450/readyz
seal() { # the first key, enabled
    upseal admin generate-key
    upseal admin ready
    upseal admin enable
}
agent() { # NAME [OPTION ...]: enrolled, running, one report stored
    upseal admin token > "$1.token"
    upseal agent enrol --parent http://127.0.0.1:8450 --token-file "$1.token" --name "$@" -d "$1"
    upseal agent run -d "$1" 2> "$1.log" &
    echo "hello from $1" | upseal agent report -d "$1"
    await sh -c "upseal server reports --client $1 | grep -q hello"
}
