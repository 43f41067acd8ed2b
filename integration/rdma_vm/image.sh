#!/usr/bin/env bash
# image.sh DIR: the kernel and initramfs of the virtual machine, into DIR. Does nothing when they are there.
#
# The kernel comes as the distribution's package, which is fetched and unpacked, never installed: the general one,
# because the one for clouds has neither rdma_rxe nor 9p. The initramfs holds busybox, `init` and the modules that
# are needed; everything else, tests included, is the host's own root, which the machine mounts read-only.
set -euo pipefail
dir=${1:?usage: image.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$dir"
cd "$dir"
if [ -e done ] && [ done -nt "$here/init" ] && [ done -nt "$here/image.sh" ]; then exit 0; fi

if [ ! -d kernel/boot ]; then
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || { echo "no package linux-image-amd64 in the package lists (apt-get update?)" >&2; exit 1; }
    rm -rf fetched kernel && mkdir fetched kernel
    (cd fetched && apt-get -qq download "$package") || { echo "cannot fetch $package" >&2; exit 1; }
    dpkg-deb -x fetched/*.deb kernel
    rm -rf fetched
fi
version=$(ls kernel/lib/modules)
depmod -b kernel "$version"
cp "kernel/boot/vmlinuz-$version" vmlinuz

rm -rf root && mkdir -p root/bin "root/lib/modules/$version"
cp "$(command -v busybox)" root/bin/busybox
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "root/bin/$applet"; done
install -m 755 "$here/init" root/init
# rdma_rxe asks for the checksum by name when it starts, so no dependency list names crc32_generic.
for module in virtio_pci 9pnet_virtio 9p crc32_generic ib_uverbs rdma_rxe dummy; do
    modprobe -d kernel -S "$version" --show-depends "$module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
    target="root/lib/modules/$version/${file#*"/$version/"}"
    mkdir -p "$(dirname "$target")"
    cp "$file" "$target"
done
cp "kernel/lib/modules/$version"/modules.{builtin,order} "root/lib/modules/$version/"
depmod -b root "$version"
# Not compressed: unpacking is what costs on an emulated processor.
(cd root && find . | cpio --quiet -o -H newc) >initramfs
touch done
