# shellcheck shell=bash
# Sourced by the entry points beside it: makes this clone ready to run on a bare Debian or Ubuntu.
#
# Safe to repeat: what is there already is left alone, and what is missing is installed. It defines
#
#   QVMI_ROOT     the folder of the clone; the working directory afterwards
#   QVMI_PYTHON   the interpreter of the clone's own virtual environment
#   say, die      print one line on stderr; die ends the script
#   set_up        does it all; call it first
#   set_up_for_tests  the same, with what only the tests need
#   build_guests  fetches the kernels that the tests boot, where the cache has not got them

set -euo pipefail

QVMI_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
QVMI_VENV=$QVMI_ROOT/.venv
# The interpreter is always called by this path: the commands pip writes into .venv/bin break when
# the clone is moved, `python -m` does not.
QVMI_PYTHON=$QVMI_VENV/bin/python

say() {
    printf '%s\n' "qvmi: $*" >&2
}

die() {
    say "$@"
    exit 1
}

# What must be on PATH, and the package that brings it.
QVMI_COMMANDS=(
    "qemu-system-x86_64=qemu-system-x86"
    "mosquitto=mosquitto"
    "busybox=busybox-static"
    "dpkg-deb=dpkg"
    "xz=xz-utils"
    "zstd=zstd"
    "flock=util-linux"
)

# The same for what only tests need: git lists the files of the project, the shells try the completion
# scripts, mosquitto_rr and openssl try the bus from outside, bpftool reads the same types as qvmi does, gdb
# the same registers; ip, nft and tcpdump make networks and tell what passes them; qemu-img, debugfs and sfdisk make disks and
# tell what is on them; the rest makes and runs
# guests of another architecture.
QVMI_TEST_COMMANDS=(
    "git=git"
    "zsh=zsh"
    "fish=fish"
    "bpftool=bpftool"
    "mosquitto_rr=mosquitto-clients"
    "openssl=openssl"
    "gdb=gdb"
    "ip=iproute2"
    "nft=nftables"
    "tcpdump=tcpdump"
    "qemu-img=qemu-utils"
    "debugfs=e2fsprogs"
    "sfdisk=fdisk"
    "gdb-multiarch=gdb-multiarch"
    "qemu-system-aarch64=qemu-system-arm"
    "aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
)

# Prints the packages of those commands that are not there, a line for each command.
packages_of() {
    local entry
    for entry in "$@"; do
        # mosquitto and bpftool live in /usr/sbin, which is not on every user's PATH.
        PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%=*}" >/dev/null || printf '%s\n' "${entry#*=}"
    done
}

missing_packages() {
    packages_of "${QVMI_COMMANDS[@]}"
    # A dynamically linked busybox, for which ldd succeeds, cannot run in a guest without libraries.
    if ldd "$(command -v busybox)" >/dev/null 2>&1; then
        printf '%s\n' busybox-static
    fi
    # The guests' init is a static C program; Debian's gcc alone comes without a libc to link.
    if ! gcc -static -x c -o /dev/null - <<<'int main(void) { return 0; }' 2>/dev/null; then
        printf '%s\n' gcc libc6-dev
    fi
    # Ubuntu has not got it; with it apt checks the signatures of Debian's kernels.
    if [[ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
        printf '%s\n' debian-archive-keyring
    fi
    if ! find_python >/dev/null; then
        printf '%s\n' python3 python3-venv
    fi
}

# Prints the first interpreter that is new enough and can make a virtual environment.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        command -v sudo >/dev/null ||
            die "needs root or sudo for: $*"
        sudo "$@"
    fi
}

install_packages() {
    command -v apt-get >/dev/null ||
        die "this is neither Debian nor Ubuntu; install what these packages bring: $*"
    say "installing $* with apt"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends -- "$@" >&2
    # Only the program is wanted: qvmi starts a broker of its own on a private socket, and nobody
    # asked for one that listens on the host's port 1883.
    if [[ " $* " == *" mosquitto "* && -d /run/systemd/system ]]; then
        as_root systemctl disable --now mosquitto.service >&2
    fi
}

ensure_packages() {
    local missing
    mapfile -t missing < <(missing_packages | tr ' ' '\n' | sort -u)
    if [[ ${#missing[@]} -gt 0 ]]; then
        install_packages "${missing[@]}"
    fi
    find_python >/dev/null ||
        die "needs Python 3.11 or newer with venv; this system's newest is" \
            "$(python3 --version 2>&1 || true). Debian 12 and Ubuntu 24.04 are new enough."
}

# Where a system has no such package the tests that need it say so themselves.
ensure_test_packages() {
    local packages
    while read -r -a packages; do
        (install_packages "${packages[@]}") ||
            say "${packages[*]} cannot be installed; its tests will be skipped"
    done < <(packages_of "${QVMI_TEST_COMMANDS[@]}")
}

# What decides whether the installed environment is still right: the project's own description, the
# interpreter, and the place, which an editable installation remembers.
wanted_stamp() {
    { cat -- "$QVMI_ROOT/pyproject.toml" && "$QVMI_PYTHON" --version && pwd -P; } | sha256sum
}

ensure_venv() {
    local stamp_file=$QVMI_VENV/.qvmi-stamp
    if ! "$QVMI_PYTHON" -m pip --version >/dev/null 2>&1; then
        say "making the virtual environment in $QVMI_VENV"
        "$(find_python)" -m venv --clear "$QVMI_VENV"
    fi
    if [[ $(cat -- "$stamp_file" 2>/dev/null) != "$(wanted_stamp)" ]]; then
        say "installing qvmi and its tools into $QVMI_VENV"
        "$QVMI_PYTHON" -m pip install --quiet --disable-pip-version-check \
            --editable '.[test]' >&2
        wanted_stamp >"$stamp_file"
    fi
}

set_up() {
    cd -- "$QVMI_ROOT"
    ensure_packages
    # Two entry points started at once must not install over each other.
    exec {lock}>"$QVMI_ROOT/.setup.lock"
    flock "$lock"
    ensure_venv
    exec {lock}>&-
    export PATH=$QVMI_VENV/bin:$PATH:/usr/sbin:/sbin
}

# The same, with what only the tests need.
set_up_for_tests() {
    set_up
    ensure_test_packages
}

# Downloads are done before the tests start: a slow line is not a hanging test.
build_guests() {
    "$QVMI_PYTHON" -m tests.guests build
}
