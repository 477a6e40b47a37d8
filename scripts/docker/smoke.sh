#!/usr/bin/env bash
# Prove that an installed Polygraft works, away from any checkout: version, help, bundled base, and a
# server that gets ready, answers a request and stops cleanly.
#   scripts/docker/smoke.sh PREFIX
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
bin=$1/bin
export PYTHONSAFEPATH=1

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
cd "$work"

free_port() {
    "$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

die() {
    printf 'smoke: %s\n' "$*" >&2
    [ ! -s server.log ] || tail -n 50 server.log >&2
    exit 1
}

"$bin/polygraft" --version
"$bin/polygraft" --help >/dev/null

port=$(free_port)
address=127.0.0.1:$port
"$bin/polygraft" serve --host 127.0.0.1 --port "$port" --metrics-port "$(free_port)" --store "$work/store" >server.log 2>&1 &
server=$!
for _ in $(seq 120); do
    kill -0 "$server" 2>/dev/null || die "the server ended while starting"
    ! "$bin/polygraft" health --server "$address" --timeout 1 2>/dev/null || break
    sleep 0.5
done
"$bin/polygraft" health --server "$address" || die "the server did not get ready"

"$bin/polygraft" generate --server "$address" --raw --max-output-tokens 8 "Anna:" >answer.txt || die "no answer"
[ -s answer.txt ] || die "the answer is empty"

kill -TERM "$server"
wait "$server" || die "the server ended with exit code $?"
server=
echo "smoke: ok"
