#!/usr/bin/env bash
#
# Install the system packages that the tests need and that are missing: as root
# by itself, else by saying what to do.
#
#     scripts/setup.sh            everything
#     scripts/setup.sh gis        everything, and the servers' spatial extensions
#     scripts/setup.sh bench      everything, and what it's compared with
#     scripts/setup.sh python     what Python lacks for virtual environments

set -euo pipefail

missing=()

have() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin" command -v "$1" > /dev/null 2>&1
}

need() {
    missing+=("$@")
}

have_postgresql() {
    have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null
}

python_has() {
    python3 -c "$1" > /dev/null 2>&1
}

python_headers='
import os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
'

python_has 'import ensurepip, venv' || need python3-venv
if [ "${1:-}" != python ]; then
    python_has "$python_headers" || need python3-dev
    have gcc || need gcc libc6-dev
    have pkg-config || need pkg-config
    # mysqlclient is compiled.
    have mariadb_config || have mysql_config || need libmariadb-dev
    have mariadbd || need mariadb-server
    if ! have_postgresql; then
        if [ "$(id -u)" -eq 0 ]; then
            need postgresql
        else
            echo "PostgreSQL isn't installed: the tests use the one in a Python wheel."
        fi
    fi
fi

if [ "${1:-}" = bench ]; then
    have pgbouncer || need pgbouncer
fi

if [ "${1:-}" = gis ]; then
    have gdalinfo || need gdal-bin
    compgen -G '/usr/share/postgresql/*/extension/postgis.control' > /dev/null ||
        need postgresql-postgis
    compgen -G '/usr/lib/*/mod_spatialite.so' > /dev/null ||
        need libsqlite3-mod-spatialite
fi

if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! have apt-get; then
    echo "These Debian packages are missing. Install them, as root, by:"
    echo
    echo "    apt-get install --no-install-recommends ${missing[*]}"
    echo
    echo "The tests start servers of their own: those of the system needn't run."
    exit 1
fi >&2

echo "Installing ${missing[*]}"

# The tests have their own servers, so don't let the packages start theirs.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}"
