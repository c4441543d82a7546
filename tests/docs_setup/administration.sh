# SPDX-License-Identifier: Apache-2.0
# Agents and relays ask often, so that nobody waits a minute.
export UPSEAL_AGENT_SEND__REFRESH=0.5 UPSEAL_AGENT_SEND__RETRY=0.2 UPSEAL_AGENT_BATCH__SECONDS=0.2
export UPSEAL_AGENT_GATHER__INTERVAL=0 UPSEAL_RELAY_REFRESH__MANIFEST=0.5
