#!/usr/bin/env bash
# run.sh IMAGE JOB: runs JOB/job.sh inside the virtual machine, on the host's root (read-only) with JOB as its folder.
# Ends with the exit code of the job, or 125 if the machine did not get that far. TIMEOUT: seconds, 400.
#
# Emulated without help of the processor, so that it runs wherever QEMU does. Slow string instructions are hidden
# from the guest: emulated, they are slower than the loops it uses instead.
set -uo pipefail
image=${1:?usage: run.sh IMAGE JOB}
job=$(cd "${2:?usage: run.sh IMAGE JOB}" && pwd)
rm -f "$job/rc"
timeout -k 5 "${TIMEOUT:-400}" qemu-system-x86_64 \
    -machine pc,usb=off -nodefaults -no-user-config -display none -no-reboot -serial stdio \
    -accel tcg,thread=multi,tb-size=512 -cpu max,-erms -smp 2 -m 2048 \
    -kernel "$image/vmlinuz" -initrd "$image/initramfs" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on" \
    -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=root,mount_tag=root \
    -fsdev local,id=job,path="$job",security_model=none -device virtio-9p-pci,fsdev=job,mount_tag=job \
    -device isa-debug-exit,iobase=0xf4,iosize=4 </dev/null
status=$?
[ -s "$job/rc" ] && exit "$(cat "$job/rc")"
echo "run.sh: the virtual machine ended without a result (QEMU: $status; 124 is the time limit)" >&2
exit 125
