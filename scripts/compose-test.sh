#!/usr/bin/env bash
# Brings docker-compose.yml up on a real engine, sees events, health and metrics arrive, and takes it down again.
#
# COMPOSE_OVERRIDE   a further compose file, for engines that lack something (for example bridge networks)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "compose-test: $*" >&2; exit 1; }
command -v docker > /dev/null || die "docker is missing; install an engine and its compose plugin (Debian: apt-get install docker.io docker-compose)"
docker info > /dev/null 2>&1 || die "no engine answers; start dockerd, or set DOCKER_HOST"
if docker compose version > /dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
"${compose[@]}" version > /dev/null 2>&1 || die "docker compose is missing; install the compose plugin"
files=(-f docker-compose.yml ${COMPOSE_OVERRIDE:+-f "$COMPOSE_OVERRIDE"})
run() { "${compose[@]}" "${files[@]}" -p headwater-test "$@"; }
trap 'run logs --tail 20 || true; run down --volumes --timeout 10 > /dev/null 2>&1 || true' EXIT

# Looks until a command says what is wanted.
until_says() {
    local what=$1 wanted=$2 deadline=$((SECONDS + 120)) said=
    shift 2
    until said=$("$@" 2>&1) && [[ $said == *$wanted* ]]; do
        [ $SECONDS -lt $deadline ] || die "waited for $what; last seen: $said"
        sleep 1
    done
    echo "compose-test: $what"
}

run up --build --detach --wait
until_says "the connector streams" '"state":"streaming"' run exec -T headwater headwater status --format json
until_says "events arrive" '"hw.op":"c"' run exec -T headwater headwater tail shop.orders --from earliest --until-end --format json
until_says "payments arrive" '"hw.op":"u"' run exec -T headwater headwater tail shop.orders --from earliest --until-end --format json
until_says "Prometheus scrapes it" '"connector":"shop"' \
    run exec -T prometheus wget -qO- 'http://127.0.0.1:9090/api/v1/query?query=headwater_events_total'
until_says "the alert rules are loaded" HeadwaterSlotNearlyLost run exec -T prometheus wget -qO- http://127.0.0.1:9090/api/v1/rules
for service in postgres kafka headwater shop prometheus; do
    user=$(run exec -T "$service" id -u) || die "$service does not run"
    [ "$user" != 0 ] || die "$service runs as root"
done
policy=$(docker inspect --format '{{.HostConfig.RestartPolicy.Name}}' "$(run ps --quiet headwater)")
[ "$policy" = no ] || die "the engine would start Headwater again after exit code 4: restart policy $policy"
trap - EXIT
run down --volumes --timeout 10
echo "compose-test: passed"
