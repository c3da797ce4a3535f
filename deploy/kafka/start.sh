#!/usr/bin/env bash
# Starts one Apache Kafka, or three that form a cluster, in KRaft mode on this machine, and stays in the foreground
# until it is interrupted. For trying things out: no TLS, no login, loopback only, unless extra properties say more.
#
#   start.sh [-n 1|3] [-p PORT] [-d DIR] [-e FILE]
#
#   -n 1|3    how many brokers; default 1
#   -p PORT   the first broker's port, default 9092; the others follow, and the controllers 1000 above
#   -d DIR    where the data goes, kept between starts; default a folder that is removed at the end
#   -e FILE   properties to add to each broker's (a SASL or TLS listener, say)
#
#   KAFKA_HEAP   each broker's heap, default 384m
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
count=1 port=9092 dir='' extra=/dev/null
while getopts n:p:d:e:h flag; do
  case $flag in
    n) count=$OPTARG ;;
    p) port=$OPTARG ;;
    d) dir=$OPTARG ;;
    e) extra=$OPTARG ;;
    *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
case $count in 1 | 3) ;; *) echo "start.sh: -n $count: 1 or 3 brokers are possible" >&2; exit 2 ;; esac
command -v java >/dev/null || { echo "start.sh: Java is missing: run 'make deps', or install the package openjdk-17-jre-headless" >&2; exit 1; }

libs=$("$here/fetch.sh")
pids=()
cleanup() {
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  wait
  [ -z "${temporary:-}" ] || rm -rf "$temporary"
}
trap cleanup EXIT
trap 'exit 0' INT TERM
if [ -z "$dir" ]; then
  temporary=$(mktemp -d) dir=$temporary
fi
mkdir -p "$dir"
[ -f "$dir/cluster.id" ] || head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d = >"$dir/cluster.id"

voters='' replicas=$count insync=1
[ "$count" -eq 3 ] && insync=2
for ((i = 0; i < count; i++)); do
  voters+="${voters:+,}$((i + 1))@127.0.0.1:$((port + 1000 + i))"
done
run() { java -Xmx"${KAFKA_HEAP:-384m}" -XX:+UseSerialGC -XX:-UsePerfData -Dlog4j2.configurationFile="$libs/log4j2.xml" -cp "$libs/libs/*" "$@"; }
for ((i = 0; i < count; i++)); do
  data=$dir/broker-$((i + 1)) props=$dir/broker-$((i + 1)).properties
  cat >"$props" <<EOF
process.roles=broker,controller
node.id=$((i + 1))
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:$((port + i)),CONTROLLER://127.0.0.1:$((port + 1000 + i))
advertised.listeners=PLAINTEXT://127.0.0.1:$((port + i))
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$data
auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$insync
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$insync
group.initial.rebalance.delay.ms=0
EOF
  cat "$extra" >>"$props"
  run kafka.tools.StorageTool format --ignore-formatted -t "$(cat "$dir/cluster.id")" -c "$props" >/dev/null
done
brokers=''
for ((i = 0; i < count; i++)); do
  run kafka.Kafka "$dir/broker-$((i + 1)).properties" &
  pids+=($!)
  brokers+="${brokers:+,}127.0.0.1:$((port + i))"
done
echo "start.sh: brokers $brokers, data in $dir" >&2
wait -n
