#!/usr/bin/env bash
# Fetch the Apache Kafka broker's jars into .deps/kafka/libs, each checked against scripts/kafka.sha256.
# With --check only say, by the exit code, whether they are there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=$PWD/scripts
target=.deps/kafka
stamp=$target/stamp
wanted=$(cat "$here/kafka.sha256" "$here/kafka-pom.xml" | sha256sum | cut -d' ' -f1)

# Checking 44 MB of hashes costs too much for every `make`; the stamp and the number of files do not.
complete() {
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] || return 1
    local jars=("$target"/libs/*.jar)
    ((${#jars[@]} == $(wc -l <"$here/kafka.sha256")))
}

if complete; then
    exit 0
fi
if [[ ${1:-} == --check ]]; then
    exit 1
fi
if ! command -v mvn >/dev/null; then
    echo "kafka: mvn is not installed, so the Apache Kafka jars can't be fetched; install maven and run 'make setup' again" >&2
    exit 1
fi

mkdir -p .deps
# Beside the target, so that the final rename stays on one file system and is atomic.
scratch=$(mktemp -d .deps/.kafka-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
echo "kafka: fetching Apache Kafka's jars (44 MB)"
# The pom is copied because Maven writes beside the pom that it reads.
cp "$here/kafka-pom.xml" "$scratch/pom.xml"
if ! mvn --batch-mode --quiet --no-transfer-progress --file "$scratch/pom.xml" \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$PWD/$scratch/kafka/libs" </dev/null >"$scratch/log" 2>&1; then
    cat "$scratch/log" >&2
    echo "kafka: Maven could not fetch the jars; check that its repository can be reached (~/.m2/settings.xml names mirrors) and run 'make setup' again" >&2
    exit 1
fi
if ! (cd "$scratch/kafka/libs" && sha256sum --check --strict --quiet "$here/kafka.sha256") >&2; then
    echo "kafka: the jars fetched are not the pinned ones; remove org/apache/kafka from Maven's local repository and run 'make setup' again" >&2
    exit 1
fi
echo "$wanted" >"$scratch/kafka/stamp"
rm -rf "$target"
mv "$scratch/kafka" "$target"
echo "kafka: ready in $target/libs"
