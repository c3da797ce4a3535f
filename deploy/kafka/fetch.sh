#!/usr/bin/env bash
# Fetches Apache Kafka by the Maven coordinates in pom.xml into a cache folder, and prints the folder.
# Needs Maven and a Java to run it. Does nothing when the folder is there already, also without a network.
# Several callers at a time wait for the first.
#
#   MAILBELL_CACHE   the cache folder; default ${XDG_CACHE_HOME:-~/.cache}/mailbell
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${MAILBELL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mailbell}
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
sum=$(sha256sum <"$here/pom.xml" | cut -c1-64)
target=$cache/kafka-$version

there() { [ "$(cat "$target/pom.sha256" 2>/dev/null)" = "$sum" ]; }

if ! there; then
  command -v mvn >/dev/null || { echo "fetch.sh: Maven is missing: run 'make deps', or install the packages maven and openjdk-17-jre-headless" >&2; exit 1; }
  command -v flock >/dev/null || { echo "fetch.sh: flock is missing: install the package util-linux" >&2; exit 1; }
  mkdir -p "$cache"
  exec 9>"$cache/.kafka.lock"
  flock 9
  if ! there; then
    echo "fetch.sh: fetching Apache Kafka $version into $target" >&2
    rm -rf "$cache"/.kafka-fetch-*
    work=$(mktemp -d "$cache/.kafka-fetch-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cp "$here/pom.xml" "$work/"
    mvn -B -q -f "$work/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$work/libs" >&2
    cp "$here/log4j2.xml" "$work/"
    echo "$sum" >"$work/pom.sha256"
    chmod 755 "$work"
    rm -rf "$target"
    mv "$work" "$target"
  fi
fi
echo "$target"
