#!/usr/bin/env bash
# The start of docs/how-to/federated.md between three network namespaces: a server and two hospitals, each with an address, a user and a
# folder of its own, which no other may read; the hospitals cannot reach each other. Linux, as root, with iproute2.
#
#   benchmarks/hospitals.sh FOLDER                                        # FOLDER: new; every user has to be able to reach it
#   CUT=45 benchmarks/hospitals.sh FOLDER                                 # the line of one hospital is cut for 45 s after the first round
#   PRIVACY='{secure_aggregation: true, clip: 1.0, noise: 0.1}' benchmarks/hospitals.sh FOLDER
#
# TSKD: the command `tskd`, PYTHON: its interpreter. Namespaces and users are taken away at the end; the folders stay to be looked at.
set -euo pipefail
folder=$(realpath -m "${1:?a new folder}") tskd=${TSKD:-$(command -v tskd)} python=${PYTHON:-$(dirname "$tskd")/python}
mkdir "$folder" && chmod 755 "$folder"
machines=(fed north south)
declare -A address=([fed]=10.77.0.1 [north]=10.77.0.2 [south]=10.77.0.3)

for name in "${machines[@]}" switch; do
  if [ -e "/run/netns/$name" ] || [ -e "/etc/netns/$name" ] || id "tskd-$name" &> /dev/null; then
    echo "error: a network namespace or user of this name exists already: $name" >&2 && exit 2
  fi
done
take_away() {
  kill "${jobs[@]}" 2> /dev/null || true
  wait || true
  for name in "${machines[@]}"; do
    ip netns del "$name" 2> /dev/null || true
    userdel "tskd-$name" 2> /dev/null || true
    rm -rf "/etc/netns/$name"
  done
  ip netns del switch 2> /dev/null || true
}
jobs=()
trap take_away EXIT

ip netns add switch
ip -n switch link add bridge type bridge && ip -n switch link set bridge up
for name in "${machines[@]}"; do
  ip netns add "$name"
  ip link add "line-$name" type veth peer name "port-$name"
  ip link set "line-$name" netns "$name" && ip link set "port-$name" netns switch
  ip -n "$name" addr add "${address[$name]}/24" dev "line-$name"
  ip -n "$name" link set "line-$name" up && ip -n "$name" link set lo up
  ip -n switch link set "port-$name" master bridge up
  mkdir -p "/etc/netns/$name" && printf '127.0.0.1 localhost\n%s fed.example.org\n' "${address[fed]}" > "/etc/netns/$name/hosts"
  useradd --no-create-home "tskd-$name"
done
for name in north south; do ip -n switch link set "port-$name" type bridge_slave isolated on; done

"$python" - "$folder" << 'P'
import shutil, sys
from pathlib import Path
from tskd.data.phantoms.write import write_phantoms

folder = Path(sys.argv[1])
write_phantoms("dermoscopy", folder / "fed/shared", count=30, size=64, seed=9, test=1)
for name, count, seed in (("north", 20, 1), ("south", 14, 2)):
    write_phantoms("dermoscopy", folder / name / "data", count=count, size=64, seed=seed, test=6)
    shutil.copytree(folder / "fed/shared", folder / name / "shared")
P
for name in "${machines[@]}"; do
  cat > "$folder/$name/fed.yaml" << Y
data: {image_size: 64, classes: [lesion]}
teacher: {name: offline, batch_size: 4}
student: {patch: 8}
distill: {steps: 40, batch_size: 4, views: 2}
federated:
  strategy: fedavg
  rounds: 3
  local_steps: 8
  privacy: ${PRIVACY:-{\}}
  sites: {north: {}, south: {}}
  transfer: {}
Y
  chown -R "tskd-$name" "$folder/$name" && chmod 700 "$folder/$name"
done

at() { # a machine, then a command of its user in its folder
  local name=$1
  shift
  ip netns exec "$name" setpriv --reuid "tskd-$name" --regid "tskd-$name" --clear-groups env -C "$folder/$name" HOME="$folder/$name" "$@"
}

at fed "$tskd" federate keys keys --host fed.example.org
for name in north south; do
  at "$name" "$tskd" federate keys keys --site "$name"
  install -o "tskd-$name" -m 644 "$folder/fed/keys/server.crt" "$folder/$name/keys/"
  install -o tskd-fed -m 644 "$folder/$name/keys/$name.pub" "$folder/fed/keys/"
done
if at north ls "$folder/south" 2> /dev/null; then echo "north can read south's folder" && exit 1; fi
if at north "$python" -c "import socket; socket.create_connection(('${address[south]}', 9), 3)" 2>&1 | grep -q refused; then
  echo "north can reach south" && exit 1
fi

began=$SECONDS
at fed "$tskd" federate server fed.yaml --keys keys --transfer shared --out out > "$folder/fed.log" 2>&1 &
jobs+=($!)
for name in north south; do
  at "$name" "$tskd" federate site fed.yaml --site "$name" --data data --transfer shared --keys keys --server fed.example.org:9092 --out out \
    > "$folder/$name.log" 2>&1 &
  jobs+=($!)
done
if [ "${CUT:-}" ]; then
  until grep -q 'round 1 of' "$folder/fed.log"; do kill -0 "${jobs[0]}" && sleep 1; done
  ip -n switch link set port-south down && sleep "$CUT" && ip -n switch link set port-south up
  echo "the line of south was cut for $CUT s"
fi
for job in "${jobs[@]}"; do wait "$job"; done
echo "all three ended after $((SECONDS - began)) s"
tail -n 12 "$folder/fed.log" && tail -n 5 "$folder/north.log" "$folder/south.log"
for name in "${machines[@]}"; do
  ip -n "$name" -s -j link show "line-$name" | "$python" -c "
import json, sys
told = json.load(sys.stdin)[0]['stats64']
print('$name:', *(f'{told[way][\"bytes\"] / 1e6:.1f} MB {word}' for way, word in (('rx', 'received,'), ('tx', 'sent'))))"
done
