#!/usr/bin/env bash
# Seaway in one command: two regions and a relay between them, a real file sent both ways in every mode while the relay
# is killed and started again, and the proof that what was promised arrived.
#
#   deploy/demo.sh [--check] [--keep] [FILE]
#
# FILE     the text to send, a message a line; by default a real one of at least 100,000 lines (Debian: wamerican)
# --check  for machines: no progress display; exit code 0 only if the proof holds
# --keep   leaves the federation running, and prints commands to try
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/deploy/prepare.sh"

check=false keep=false file=""
for argument in "$@"; do
    case "$argument" in
        --check) check=true ;;
        --keep) keep=true ;;
        --help | -h) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        -*) say "$argument is not an option; see deploy/demo.sh --help"; exit 2 ;;
        *)
            [ -z "$file" ] || { say "one FILE at most is sent; see deploy/demo.sh --help"; exit 2; }
            file="$argument"
            ;;
    esac
done
terminal=false
[ "$check" = false ] && [ -t 2 ] && terminal=true

work="$(mktemp -d "${TMPDIR:-/tmp}/seaway-demo.XXXXXX")"
relay_pid="" eu_pid="" us_pid="" helpers=()
failed=true interrupted=false

# Ends what this script started, by process id, and removes its directory.
clean_up() {
    trap - EXIT INT TERM
    local pid
    if [ "$keep" = true ] && [ "$failed" = false ]; then return; fi
    for pid in "${helpers[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in $relay_pid $eu_pid $us_pid; do kill "$pid" 2>/dev/null || true; done
    for pid in "${helpers[@]}" $relay_pid $eu_pid $us_pid; do wait_gone "$pid"; done
    if [ "$failed" = true ] && [ "$interrupted" = false ]; then
        for log in "$work"/*.log; do
            [ -s "$log" ] && { say "--- the end of ${log##*/}"; tail -n 15 "$log" >&2; }
        done
    fi
    rm -rf "$work"
}
wait_gone() {
    local tries=0
    while kill -0 "$1" 2>/dev/null && [ $tries -lt 150 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
trap clean_up EXIT
trap 'interrupted=true; exit 130' INT
trap 'interrupted=true; exit 143' TERM

die() { say "demo: $*"; exit 1; }

# --- what is sent --------------------------------------------------------------------------------------------------
need_toolchain || exit 1
choose_file() {
    local candidate
    for candidate in /usr/share/dict/words /usr/share/dict/american-english; do
        if [ -r "$candidate" ] && [ "$(wc -l < "$candidate")" -ge 100000 ]; then file="$candidate"; return; fi
    done
    need_packages wamerican || die "or name a text of your own: deploy/demo.sh FILE"
    file=/usr/share/dict/american-english
}
[ -n "$file" ] || choose_file
[ -r "$file" ] && [ -f "$file" ] || die "$file cannot be read; name a file"
# A last line without its newline counts as a line, here as in `seaway pub`.
sent="$work/sent.txt"
cat "$file" > "$sent"
[ -s "$sent" ] || die "$file is empty; name a file with lines in it"
[ -z "$(tail -c 1 "$sent")" ] || echo >> "$sent"
lines="$(wc -l < "$sent")"

(cd "$root" && build_seaway)
seaway="$CARGO_TARGET_DIR/release/seaway"

# --- certificates, configurations, three nodes ---------------------------------------------------------------------
taken_ports="$(cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 2>/dev/null | awk '{ split($2, a, ":"); print a[length(a)] }')"
free_port() { # sets `port`
    local hex
    while :; do
        port=$((20000 + RANDOM % 12000))
        hex="$(printf '%04X' "$port")"
        case "$taken_ports" in *"$hex"*) ;; *) taken_ports="$taken_ports $hex"; return ;; esac
    done
}
free_port; relay_port=$port
free_port; eu_door=$port
free_port; us_door=$port

say "Certificates, by a private authority (seaway ca) …"
"$seaway" ca init --dir "$work/ca" --federation demo > /dev/null
"$seaway" ca issue hub/relay --dir "$work/ca" --out "$work" > /dev/null
for site in eu us; do
    "$seaway" ca issue "$site/edge" --dir "$work/ca" --out "$work" --host localhost --host 127.0.0.1 > /dev/null
done
"$seaway" ca client demo --dir "$work/ca" --out "$work" > /dev/null

cat > "$work/relay.toml" <<EOF
[node]
kind = "relay"
federation = "demo"
site = "hub"
name = "relay"
data_dir = "relay.data"

[link]
listen = "127.0.0.1:$relay_port"
cert_file = "hub-relay.pem"
key_file = "hub-relay.key"
ca_file = "ca/ca.pem"

[cache]
size = "64 MiB"
EOF
edge_config() { # site, its door's port
    cat > "$work/$1.toml" <<EOF
[node]
kind = "edge"
federation = "demo"
site = "$1"
name = "edge"
data_dir = "$1.data"

[link]
cert_file = "$1-edge.pem"
key_file = "$1-edge.key"
ca_file = "ca/ca.pem"

[[link.peer]]
node = "hub/relay"
address = "localhost:$relay_port"

[door]
listen = "127.0.0.1:$2"
cert_file = "$1-edge.pem"
key_file = "$1-edge.key"
client_ca_file = "ca/ca.pem"

[[door.client]]
name = "demo"
publish = ["#"]
subscribe = ["#"]
admin = true

[[want]]
name = "everything"
pattern = "#"
EOF
}
edge_config eu "$eu_door"
edge_config us "$us_door"
for config in relay eu us; do "$seaway" config check "$work/$config.toml" > /dev/null; done

start_relay() { "$seaway" relay --config "$work/relay.toml" 2>> "$work/relay.log" & relay_pid=$!; }
say "Two regions, eu and us, and a relay between them …"
start_relay
"$seaway" edge --config "$work/eu.toml" 2> "$work/eu.log" & eu_pid=$!
"$seaway" edge --config "$work/us.toml" 2> "$work/us.log" & us_pid=$!

identity=(--tls-ca "$work/ca/ca.pem" --cert "$work/demo.pem" --tls-key "$work/demo.key")
become() { # site, command and its arguments: to be run in the background, where `$!` is then the command itself
    local door=$eu_door site="$1"
    shift
    [ "$site" = us ] && door=$us_door
    exec "$seaway" "$@" --server "https://localhost:$door" "${identity[@]}"
}
at() { (become "$@"); }
other() { if [ "$1" = eu ]; then echo us; else echo eu; fi; }
alive() {
    kill -0 "$eu_pid" 2>/dev/null || die "the node of eu has ended"
    kill -0 "$us_pid" 2>/dev/null || die "the node of us has ended"
}
declare -A subscriber publisher
publishing() { # ends all when a publisher has failed: what it did not send, nobody needs to wait for
    local route
    for route in "$@"; do
        [ -n "${publisher[$route]}" ] && ! kill -0 "${publisher[$route]}" 2>/dev/null || continue
        wait "${publisher[$route]}" || die "$route: publishing failed: $(tail -n 1 "$work/$route.pub.log")"
        publisher[$route]=""
    done
}

# Ready when a message published at each site is acknowledged by the other.
for site in eu us; do
    tries=0
    until at "$site" pub demo-ready --ack "sites=$(other $site)" --deadline 5s "hello from $site" 2> "$work/ready.log"; do
        alive
        tries=$((tries + 1))
        [ $tries -lt 120 ] || die "eu and us do not reach each other: $(tail -n 1 "$work/ready.log")"
        sleep 0.5
    done
done
at eu link ls >&2

# --- sync and async, both ways at once, with the relay killed in the middle -------------------------------------------
routes=(sync.eu.us sync.us.eu async.eu.us async.us.eu)
part() { echo "$1" | cut -d. -f"$2"; }
arrived() { if [ -f "$work/$1.arrived" ]; then wc -l < "$work/$1.arrived"; else echo 0; fi; }
total_arrived() {
    local route sum=0
    for route in "$@"; do sum=$((sum + $(arrived "$route"))); done
    echo "$sum"
}

# The first half is sent before the relay is killed, the second after it: "in the middle" does not hang on the machine's speed.
half=$((lines / 2))
feed() {
    head -n "$half" "$sent"
    until [ -e "$work/killed" ]; do
        [ -d "$work" ] || exit 0
        sleep 0.05
    done
    tail -n "+$((half + 1))" "$sent"
}

say "Sending $lines lines of $file from each region to the other, sync (--ack all) and async …"
for route in "${routes[@]}"; do
    mode="$(part "$route" 1)" from="$(part "$route" 2)" to="$(part "$route" 3)"
    become "$to" sub "demo-$mode" --origin "$from" --from earliest --count "$lines" --timeout 600s \
        > "$work/$route.arrived" 2> "$work/$route.sub.log" &
    subscriber[$route]=$!
    acknowledge=()
    [ "$mode" = sync ] && acknowledge=(--ack all --deadline 300s)
    become "$from" pub "demo-$mode" --mode "$mode" "${acknowledge[@]}" < <(feed) 2> "$work/$route.pub.log" &
    publisher[$route]=$!
    helpers+=("${subscriber[$route]}" "${publisher[$route]}")
done

show() { # what is under way
    local route text=""
    for route in "$@"; do
        text="$text$(part "$route" 1) $(part "$route" 2)→$(part "$route" 3) $(($(arrived "$route") * 100 / lines)) %   "
    done
    if [ "$terminal" = true ]; then
        printf '\r\033[K%s last: %.40s' "$text" "$(tail -n 1 "$work/$1.arrived" 2>/dev/null)" >&2
    else
        say "$text"
    fi
}
all=$((lines * ${#routes[@]}))
tries=0
enough=$((all / 50 + 1 < half * ${#routes[@]} ? all / 50 + 1 : half * ${#routes[@]}))
until [ "$(total_arrived "${routes[@]}")" -ge $enough ]; do
    alive
    publishing "${routes[@]}"
    tries=$((tries + 1))
    [ $tries -lt 6000 ] || die "nothing arrives"
    sleep 0.02
done
at_kill="$(total_arrived "${routes[@]}")"
kill -KILL "$relay_pid"
wait "$relay_pid" 2>/dev/null || true
relay_pid=""
touch "$work/killed"
[ "$terminal" = true ] && printf '\r\033[K' >&2
say "The relay is killed, with $at_kill of $all messages arrived."
for _ in 1 2 3; do show "${routes[@]}"; sleep 1; done
[ "$terminal" = true ] && printf '\r\033[K' >&2
while_down="$(total_arrived "${routes[@]}")"
start_relay
say "The relay is started again; $((while_down - at_kill)) more had passed it before it was killed and arrived meanwhile."

pause=5
[ "$terminal" = true ] && pause=0.3
while :; do
    running=false
    for route in "${routes[@]}"; do kill -0 "${subscriber[$route]}" 2>/dev/null && running=true; done
    [ "$running" = true ] || break
    alive
    publishing "${routes[@]}"
    show "${routes[@]}"
    sleep "$pause"
done
show "${routes[@]}"
[ "$terminal" = true ] && echo >&2
proof=true
for route in "${routes[@]}"; do
    while [ -n "${publisher[$route]}" ]; do publishing "$route"; sleep 0.02; done
    wait "${subscriber[$route]}" || { say "$route: subscribing failed: $(tail -n 1 "$work/$route.sub.log")"; proof=false; }
done
[ "$at_kill" -lt "$all" ] || { say "all had arrived before the relay was killed"; proof=false; }

# --- one-way -----------------------------------------------------------------------------------------------------------
say "Sending the same lines one-way …"
one_way=(one-way.eu.us one-way.us.eu)
for route in "${one_way[@]}"; do
    to="$(part "$route" 3)" from="$(part "$route" 2)"
    become "$to" sub demo-one-way --origin "$from" --from latest > "$work/$route.arrived" 2> "$work/$route.sub.log" &
    subscriber[$route]=$!
    helpers+=("${subscriber[$route]}")
done
# The subscriptions stand once something passes; the probe is taken off again below.
for route in "${one_way[@]}"; do
    tries=0
    until [ -s "$work/$route.arrived" ]; do
        at "$(part "$route" 2)" pub demo-one-way --mode one-way $'\x01probe' 2> "$work/$route.pub.log" || true
        sleep 0.2
        tries=$((tries + 1))
        if [ $tries -ge 150 ]; then say "$route: nothing passes"; break; fi
    done
done
for route in "${one_way[@]}"; do
    become "$(part "$route" 2)" pub demo-one-way --mode one-way --file "$sent" 2> "$work/$route.pub.log" &
    publisher[$route]=$!
    helpers+=("${publisher[$route]}")
done
for route in "${one_way[@]}"; do
    wait "${publisher[$route]}" || { say "$route: publishing failed: $(tail -n 1 "$work/$route.pub.log")"; proof=false; }
done
before=-1
while [ "$(total_arrived "${one_way[@]}")" -ne $before ]; do # until nothing comes any more
    before="$(total_arrived "${one_way[@]}")"
    sleep 1.5
done
for route in "${one_way[@]}"; do
    kill "${subscriber[$route]}" 2>/dev/null || true
    wait "${subscriber[$route]}" 2>/dev/null || true
    grep -av $'^\x01probe$' "$work/$route.arrived" > "$work/$route.kept" || true
    mv "$work/$route.kept" "$work/$route.arrived"
done

# --- the proof ---------------------------------------------------------------------------------------------------------
digest() { sha256sum "$1" | cut -c1-64; }
expected="$(digest "$sent")"
printf '\n%-8s %-7s %9s %9s %9s  %-6s %s\n' mode way sent stored arrived order "SHA-256 at the origin / where it arrived"
for route in "${routes[@]}"; do
    mode="$(part "$route" 1)" from="$(part "$route" 2)" to="$(part "$route" 3)"
    at "$from" sub "demo-$mode" --origin "$from" --from earliest --until-end --timeout 300s > "$work/$route.stored" || proof=false
    stored="$(wc -l < "$work/$route.stored")"
    order=same
    cmp -s "$sent" "$work/$route.arrived" || { order=WRONG; proof=false; }
    cmp -s "$sent" "$work/$route.stored" || { order=WRONG; proof=false; }
    here="$(digest "$work/$route.stored")" there="$(digest "$work/$route.arrived")"
    [ "$here" = "$expected" ] && [ "$there" = "$expected" ] || proof=false
    printf '%-8s %-7s %9d %9d %9d  %-6s %.16s… / %.16s…\n' "$mode" "$from→$to" "$lines" "$stored" "$(arrived "$route")" "$order" "$here" "$there"
done
for route in "${one_way[@]}"; do
    count="$(arrived "$route")"
    # Whatever arrived was sent, and no line more often than it was sent.
    strange="$(LC_ALL=C comm -13 <(LC_ALL=C sort "$sent") <(LC_ALL=C sort "$work/$route.arrived") | wc -l)"
    [ "$strange" -eq 0 ] && [ "$count" -gt 0 ] || proof=false
    awk -v mode=one-way -v way="$(part "$route" 2)→$(part "$route" 3)" -v sent="$lines" -v count="$count" -v strange="$strange" 'BEGIN {
        printf "%-8s %-7s %9d %9s %9d  %.2f %% delivered, %d not as sent\n", mode, way, sent, "-", count, 100 * count / sent, strange }'
done
printf 'SHA-256 of what was sent: %s\n' "$expected"

if [ "$proof" = true ]; then
    printf 'The proof holds: sync and async arrived completely, once, and in order, although the relay was killed.\n'
    failed=false
else
    printf 'The proof does NOT hold.\n'
fi

if [ "$keep" = true ] && [ "$failed" = false ]; then
    cat <<EOF

The federation is running in $work. To try (eu is https://localhost:$eu_door, us is https://localhost:$us_door):

  seaway() { '$seaway' "\$@"; }
  export SEAWAY_SERVER=https://localhost:$eu_door
  ID='--tls-ca $work/ca/ca.pem --cert $work/demo.pem --tls-key $work/demo.key'
  seaway status \$ID
  seaway link ls \$ID
  seaway sub 'news/#' \$ID --server https://localhost:$us_door &
  seaway pub news/weather 'sun in eu' --ack all \$ID

To end it:

  kill $relay_pid $eu_pid $us_pid; while kill -0 $relay_pid $eu_pid $us_pid 2>/dev/null; do sleep 0.2; done; rm -rf '$work'
EOF
fi
[ "$failed" = false ]
