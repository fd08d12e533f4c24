#!/bin/bash
# A PostgreSQL server below /volume, used hard.
#   make       a new cluster
#   use SECONDS  pgbench for so long; two more clients say what was committed
#   look       what is in it, and whether all is whole
set -euo pipefail
export PATH=/usr/lib/postgresql/17/bin:$PATH PGHOST=/tmp PGUSER=postgres PGDATA=/volume/data
if [ "$(id -u)" = 0 ]; then
    chown postgres: /volume
    exec setpriv --reuid=postgres --regid=postgres --clear-groups --inh-caps=-all bash "$0" "$@"
fi
cd /tmp

start() {
    : > /tmp/log
    pg_ctl --silent --wait --timeout=600 --log=/tmp/log --options="-c listen_addresses= -c unix_socket_directories=/tmp -c max_connections=20" start > /dev/null ||
        { cat /tmp/log; exit 1; }
    grep -oE 'automatic recovery in progress|redo done|ready to accept' /tmp/log || true
}
stop() { pg_ctl --silent --wait --timeout=600 --mode=fast stop; }
ask() { psql --quiet --no-psqlrc --tuples-only --no-align "$@"; }
client() {
    local number=0
    number=$(ask -c "SELECT coalesce(max(number), 0) FROM acknowledged WHERE client = $1")
    while :; do
        number=$((number + 1))
        echo "INSERT INTO acknowledged VALUES ($1, $number) RETURNING 'row ' || client || ' ' || number;"
    done | ask
}

case $1 in
make)
    initdb --data-checksums --auth=trust --username=postgres --locale=C --encoding=UTF8 > /tmp/log || { cat /tmp/log; exit 1; }
    start
    pgbench --quiet --initialize --scale=1 2> /tmp/pgbench || { cat /tmp/pgbench; exit 1; }
    ask -c "CREATE TABLE acknowledged (client int, number int, PRIMARY KEY (client, number))"
    stop
    ;;
use)
    start
    client 1 & client 2 &
    clients=$(jobs -p)
    pgbench --no-vacuum --client=4 --jobs=2 --time="$2" --progress=5 2>&1
    kill $clients
    wait || true
    stop
    ;;
look)
    start
    for sum in "abalance FROM pgbench_accounts" "tbalance FROM pgbench_tellers" "bbalance FROM pgbench_branches" "delta FROM pgbench_history"; do
        echo "sum $(ask -c "SELECT coalesce(sum(${sum%% *}), 0) ${sum#* }")"
    done
    echo "history $(ask -c "SELECT count(*) FROM pgbench_history")"
    ask -c "SELECT 'row ' || client || ' ' || number FROM acknowledged"
    pg_amcheck --install-missing --heapallindexed --parent-check postgres
    stop
    pg_checksums --check | grep 'Bad checksums'
    ;;
esac
