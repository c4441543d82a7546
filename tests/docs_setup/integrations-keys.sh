# SPDX-License-Identifier: Apache-2.0
upseal keygen -o server.pem
mkdir -p /run/upseal
upseal keys serve --socket /run/upseal/keys.sock --allow-user root --same-user -i server.pem 2> keys.log &
for _ in $(seq 300); do [ -S /run/upseal/keys.sock ] && break; sleep 0.1; done
