#!/usr/bin/env bash
# Install whatever is missing for the parts named, all but bench by default:
#   build     compiler, libraries and libtorch
#   postgres  the Postgres server's binaries; no cluster is created
#   photos    photographs for the demo
#   kafka     Java and the Apache Kafka broker
#   pgbouncer for the fault tests
#   tools     linters
#   chart     Helm, promtool, schemas and a policy scanner, for charts/
#   bench     Python packages of what the benchmarks compare with
#   web       a headless Chromium, and what drives it and the scoring API in tests
#   pip       what fetching wheels takes; every other part includes it
# Only what is missing is touched, so a second run takes a moment.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
deps=$PWD/.deps
parts=("$@")
((${#parts[@]})) || parts=(build postgres photos kafka pgbouncer tools chart web)

for part in "${parts[@]}"; do
    case $part in
    build | postgres | photos | kafka | pgbouncer | tools | chart | bench | web | pip) ;;
    *)
        echo "setup: there is no part '$part'; the parts are build, postgres, photos, kafka, pgbouncer, tools, chart, bench, web and pip" >&2
        exit 2
        ;;
    esac
done

wants() {
    local part
    for part in "${parts[@]}"; do
        [[ $part == "$1" ]] && return 0
    done
    return 1
}

fail() {
    echo "setup: $1" >&2
    exit 1
}

can_be_root() {
    if ((EUID == 0)); then
        return 0
    fi
    # With a terminal, sudo may ask for the password.
    command -v sudo >/dev/null && { [[ -t 0 ]] || sudo --non-interactive true 2>/dev/null; }
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

lists_are_fresh=
refresh_lists() {
    [[ -n $lists_are_fresh ]] && return 0
    echo "setup: reading apt's package lists"
    as_root apt-get update --quiet --quiet </dev/null || fail "'apt-get update' failed; see its message above"
    lists_are_fresh=yes
}

# Names the Java to install: releases differ in which they carry, and Kafka 4 wants 17 or later.
java_package() {
    local version
    for version in 17 21 25; do
        if apt-cache policy "openjdk-$version-jre-headless" | grep -q 'Candidate: [0-9]'; then
            echo "openjdk-$version-jre-headless"
            return 0
        fi
    done
    echo default-jre-headless
}

has_java() {
    local version
    command -v java >/dev/null || return 1
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
    ((${version:-0} >= 17))
}

has_postgres() {
    command -v initdb >/dev/null && command -v postgres >/dev/null && return 0
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

has_pgbouncer() {
    command -v pgbouncer >/dev/null || [[ -x /usr/sbin/pgbouncer ]]
}

has_chromium() {
    local name
    [[ -n ${CHROMIUM:-} ]] && return 0
    for name in chromium-headless-shell chromium google-chrome google-chrome-stable; do
        command -v "$name" >/dev/null && return 0
    done
    return 1
}

has_pip() {
    python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)'
}

# Package names as Debian has them, of what is not there in any other way either.
missing=()
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

command -v python3 >/dev/null || fail "python3 is not installed; install Python 3.9 or later"
if ! command -v cargo >/dev/null; then
    fail "cargo is not on the PATH; install Rust (the version that Cargo.toml names, or later)"
fi
if wants build; then
    need build-essential command -v c++
    need cmake command -v cmake
    need nasm command -v nasm
    need pkg-config command -v pkg-config
    need libssl-dev pkg-config --exists openssl
    need zlib1g-dev pkg-config --exists zlib
fi
need python3-pip has_pip
wants postgres && need postgresql has_postgres
wants pgbouncer && need pgbouncer has_pgbouncer
# Of Prometheus only promtool is wanted; no server is started.
wants chart && need prometheus command -v promtool
if wants kafka; then
    need java has_java
    scripts/kafka.sh --check || need maven command -v mvn
fi

if ((${#missing[@]})); then
    if ! command -v apt-get >/dev/null; then
        fail "missing: ${missing[*]} (Debian's names; java means 17 or later). There is no apt-get here: install them in this system's own way and run this again"
    fi
    if ! can_be_root; then
        fail "missing: ${missing[*]} (java means 17 or later). There is neither root nor a sudo that answers without a password: install them with apt-get as root and run this again"
    fi
    refresh_lists
    for index in "${!missing[@]}"; do
        [[ ${missing[index]} == java ]] && missing[index]=$(java_package)
    done
    echo "setup: installing ${missing[*]}"
    # Slim images leave the manual pages' folders out, and then some packages can't be configured.
    as_root mkdir -p /usr/share/man/man1 /usr/share/man/man7
    cluster_defaults=/etc/postgresql-common/createcluster.conf
    borrowed=
    if [[ " ${missing[*]} " == *" postgresql "* && ! -e $cluster_defaults ]]; then
        # The binaries are wanted, not a server that starts with the machine.
        borrowed=yes
        as_root mkdir -p "${cluster_defaults%/*}"
        echo 'create_main_cluster = false' | as_root tee "$cluster_defaults" >/dev/null
    fi
    # Nor is any other package to start a server.
    policy=/usr/sbin/policy-rc.d
    forbidden=
    if [[ ! -e $policy ]]; then
        forbidden=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
        trap 'as_root rm -f "$policy"' EXIT
    fi
    log=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get install --yes --quiet --quiet \
        --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
        "${missing[@]}" ca-certificates </dev/null >"$log" 2>&1 ||
        { cat "$log" >&2; fail "apt could not install ${missing[*]}; see its messages above"; }
    rm -f "$log"
    if [[ -n $forbidden ]]; then
        as_root rm -f "$policy"
        trap - EXIT
    fi
    if [[ -n $borrowed && -e /usr/share/postgresql-common/createcluster.conf ]]; then
        as_root cp /usr/share/postgresql-common/createcluster.conf "$cluster_defaults"
    fi
fi

mkdir -p "$deps"
if wants build; then
    if [[ -n ${LIBTORCH:-} && ! $LIBTORCH -ef $deps/libtorch ]]; then
        python3 scripts/libtorch.py --check "$LIBTORCH"
    else
        python3 scripts/libtorch.py --keep "$deps/libtorch"
    fi
fi

# The rest is worth going on without: what needs it says so itself.
if wants photos && ! python3 scripts/photos.py --check "$deps/photos"; then
    if can_be_root && command -v apt-cache >/dev/null && ! apt-cache show mate-backgrounds >/dev/null 2>&1; then
        (refresh_lists) || true
    fi
    python3 scripts/photos.py "$deps/photos" ||
        echo "setup: WARNING: no photographs for the demo; 'make demo PHOTOS=DIR' takes your own" >&2
fi
if wants kafka; then
    scripts/kafka.sh ||
        echo "setup: WARNING: no Apache Kafka broker; tests that need one will fail, or be skipped and counted with ALLOW_SKIP=1" >&2
fi
if wants web; then
    # Debian has both names; Ubuntu's package by the second one only points at a snap, which needs a running snapd.
    if ! has_chromium && can_be_root && command -v apt-get >/dev/null; then
        (refresh_lists) || true
        echo "setup: installing a headless Chromium"
        for name in chromium-headless-shell chromium; do
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends \
                -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$name" </dev/null >/dev/null 2>&1 && break
        done
    fi
    has_chromium ||
        echo "setup: WARNING: no Chromium; name one in CHROMIUM. Tests of the page will fail, or be skipped and counted with ALLOW_SKIP=1" >&2
    python3 scripts/web.py "$deps/web" ||
        echo "setup: WARNING: no playwright and schemathesis; tests that need them will fail, or be skipped and counted with ALLOW_SKIP=1" >&2
fi
if wants tools; then
    python3 scripts/tools.py "$deps/tools" ||
        echo "setup: WARNING: no linters; 'make lint' uses those on the PATH" >&2
fi
if wants chart; then
    python3 scripts/chart_tools.py "$deps/chart" ||
        echo "setup: WARNING: no Helm; 'make chart-test' will fail" >&2
fi
if wants bench; then
    requirements=benches/python_worker/requirements.txt
    wanted=$(sha256sum "$requirements" | cut -d' ' -f1)
    if [[ ! -x $deps/bench/bin/python || $(cat "$deps/bench/stamp" 2>/dev/null) != "$wanted" ]]; then
        echo "setup: installing the Python packages of the benchmarks' peers"
        # Without pip in it: Debian has that in a package of its own.
        rm -rf "$deps/bench"
        { python3 -m venv --without-pip "$deps/bench" &&
            python3 -m pip --python "$deps/bench/bin/python" install --quiet --disable-pip-version-check --no-input \
                --require-hashes --only-binary=:all: --requirement "$requirements" &&
            echo "$wanted" >"$deps/bench/stamp"; } ||
            echo "setup: WARNING: no Python packages for the benchmarks' peers (pip 22.3 or later is needed); what compares with them fails" >&2
    fi
fi
