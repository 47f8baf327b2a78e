#!/usr/bin/env bash
# Makes an authority and a certificate for each node, once; the volume keeps them.
set -euo pipefail
tls=/etc/seaway/tls
[ -e "$tls/ca/ca.pem" ] || seaway ca init --dir "$tls/ca" --federation acme
for node in hub/relay eu/edge us/edge; do
    [ -e "$tls/${node/\//-}.pem" ] || seaway ca issue "$node" --dir "$tls/ca" --out "$tls" --host localhost --host "${node%%/*}"
done
[ -e "$tls/operator.pem" ] || seaway ca client operator --dir "$tls/ca" --out "$tls"
