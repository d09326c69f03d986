#!/bin/sh
# Goes on where init.sh left off, with a root that can be pivoted: cgroups, then the tests, then the end.
argument() { tr ' ' '\n' </proc/cmdline | sed -n "s/^podtracer\.$1=//p"; }

v1() { # mounts each controller by itself below the folder
    mount -t tmpfs cgroup /sys/fs/cgroup
    sed '1d; s/\t.*//' /proc/cgroups | while read -r name; do
        mkdir "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
}

case $(argument layout) in
unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
legacy) v1 ;;
hybrid)
    v1
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    ;;
esac
ip link set lo up
echo "$(argument pid_max)" >/proc/sys/kernel/pid_max
cd /opt/podtracer || exit 1
export PODTRACER_TEST_SLOW="$(argument slow)" PODTRACER_TEST_REQUIRE=1 PODTRACER_TEST_LAB="$PWD/tests/kernel/lab"
.venv/bin/python -P -m tests.vm.guest /dev/ttyS1
echo "the tests ended with $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
