#!/bin/sh
# The first process of a virtual machine: mounts what a distribution has mounted, runs the kernel tests, turns it off.
# Of the kernel's command line it takes what begins with podtracer.
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
mount -t proc proc /proc
# A bind mount of the root as the root: from the initramfs itself no container's root can be pivoted.
mkdir -p /root.bound
mount --bind / /root.bound
cd /root.bound || exit 1
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm dev/mqueue
mount -t devpts pts dev/pts
mount -t tmpfs tmp tmp
mount -t tmpfs run run
mount -t bpf bpf sys/fs/bpf
mount --move . /
exec chroot . /bin/sh /opt/podtracer/tests/vm/inside.sh
