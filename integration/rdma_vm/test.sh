#!/usr/bin/env bash
# What `make test-rdma` runs: the RDMA tests over Soft-RoCE, in a virtual machine, with test programs built here.
#
# Where something is missing it says what and ends well, unless MEMCACHE_REQUIRE_RDMA=1. As root it installs the
# packages itself; the kernel is fetched once into RDMA_VM_DIR (target/rdma-vm). FILTER: tests whose names hold it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
dir=${RDMA_VM_DIR:-target/rdma-vm}
packages=(qemu-system-x86 busybox-static cpio kmod rdma-core ibverbs-providers iproute2)

skip() {
    echo "========================================================================"
    echo "SKIPPED: the RDMA tests did not run: $1"
    echo "========================================================================"
    [ "${MEMCACHE_REQUIRE_RDMA:-0}" = 1 ] && exit 1
    exit 0
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || skip "the virtual machine is for Linux on x86_64, this is $(uname -sm)"
missing=()
for tool in qemu-system-x86_64 busybox cpio depmod rdma; do
    PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null || missing+=("$tool")
done
ldconfig -p 2>/dev/null | grep -q 'libibverbs\.so\.1' || missing+=(libibverbs.so.1)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || skip "missing ${missing[*]}, and there is no apt-get to install them with"
    [ "$(id -u)" = 0 ] || skip "missing ${missing[*]}; as root: apt-get install ${packages[*]}"
    echo "installing for the virtual machine: ${packages[*]}"
    log=$(mktemp)
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${packages[@]}"; } \
        >"$log" 2>&1 || skip "apt-get install ${packages[*]} failed: $(tail -n 1 "$log")"
    rm -f "$log"
fi
export PATH=$PATH:/sbin:/usr/sbin
why=$("$here/image.sh" "$dir" 2>&1) || skip "no kernel for the virtual machine: $(tail -n 1 <<<"$why")"

job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
# Copies of the test programs, whose paths cargo tells: the machine has a /tmp of its own, so that what lies there on
# the host is not seen.
build() {
    local program
    program=$(cargo test --quiet -p "$1" --test "$2" --no-run --message-format=json |
        sed -n 's/.*"name":"'"$2"'".*"executable":"\([^"]*\)".*/\1/p')
    [ -x "$program" ] || { echo "cargo built no test program $2" >&2; exit 1; }
    cp "$program" "$job/$2"
}
build memcache-transport-rdma soft_roce
build memcache-client rdma

cat >"$job/job.sh" <<'JOB'
set -e
echo "device: $(rdma link show)"
for program in soft_roce rdma; do
    "./$program" --include-ignored --test-threads=1 --nocapture --skip owner_process ${FILTER:-}
done
JOB
[ -n "${FILTER:-}" ] && sed -i "1i FILTER='$FILTER'" "$job/job.sh"
"$here/run.sh" "$dir" "$job"
